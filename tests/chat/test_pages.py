"""Pages: none is lost or given twice, and a prompt's beginning is found again only where it is the same."""

import torch

from llamafactory.chat.pages import PagePool, pages_for
from llamafactory.ops.paged_attention import PAGE


PROMPT = list(range(3 * PAGE + 5))


def test_a_prompt_finds_the_whole_pages_of_its_beginning() -> None:
    pool = PagePool(10)
    pages = pool.take(pages_for(len(PROMPT)))
    pool.publish(PROMPT, pages)

    assert pool.share_prefix(PROMPT) == pages[:3]
    assert pool.share_prefix([*PROMPT[: 2 * PAGE], 1, 2, 3]) == pages[:2]
    assert pool.share_prefix([1, *PROMPT]) == []
    assert pool.share_prefix(PROMPT, "an adapter") == []
    assert pool.share_prefix(PROMPT[: 3 * PAGE]) == pages[:2]  # the last token stays to be computed


def test_idle_pages_are_kept_until_their_place_is_needed() -> None:
    pool = PagePool(4)
    pages = pool.take(3)
    pool.publish(PROMPT, pages)
    pool.release(pages)
    assert pool.num_available == 4

    pool.release(pool.share_prefix(PROMPT))
    taken = pool.take(2)

    assert pool.share_prefix(PROMPT) == pages[:2]  # the end of the prefix went first
    assert pages[2] in taken


def test_no_page_is_lost_or_given_twice() -> None:
    numbers = iter(torch.randint(0, 2**20, (12000,), generator=torch.Generator().manual_seed(0)).tolist())
    pool = PagePool(12)
    users: list[list[int]] = []
    for _ in range(2000):
        if users and next(numbers) % 2:
            pool.release(users.pop(next(numbers) % len(users)))
            continue
        prompt = [next(numbers) % 2] * PAGE + [next(numbers) % 2] * (next(numbers) % (2 * PAGE) + 1)
        shared = pool.share_prefix(prompt)
        needed = pages_for(len(prompt)) - len(shared)
        if needed > pool.num_available:
            pool.release(shared)
            continue
        fresh = pool.take(needed)
        assert not {page for user in users for page in user} & set(fresh)
        pool.publish(prompt, [*shared, *fresh])
        users.append([*shared, *fresh])
    for user in users:
        pool.release(user)
    assert pool.num_available == 12
