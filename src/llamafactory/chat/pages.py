"""Who owns which page of keys and values, and which pages hold the beginning of a prompt that may come again.

Only whole pages that were computed from a prompt are kept for others, under a digest of all tokens up to their end and
of the adapter. A page that nobody uses stays until its place is needed; the one used longest ago goes first.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Sequence

from ..ops.paged_attention import PAGE


class PagePool:
    """Pages are numbers; what they hold is in ops/paged_attention.py."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._users: Counter[int] = Counter()
        self._known: dict[bytes, int] = {}
        self._digests: dict[int, bytes] = {}
        self._idle: dict[int, None] = {}  # known pages without a user, the longest idle first

    @property
    def num_available(self) -> int:
        """How many pages can be taken."""
        return len(self._free) + len(self._idle)

    def take(self, count: int) -> list[int]:
        """Take pages for one user; the caller has looked at num_available."""
        while len(self._free) < count:
            page = next(iter(self._idle))
            del self._idle[page]
            del self._known[self._digests.pop(page)]
            self._free.append(page)
        pages = [self._free.pop() for _ in range(count)]
        self._users.update(pages)
        return pages

    def share_prefix(self, tokens: Sequence[int], adapter: str | None = None) -> list[int]:
        """Take the known pages that a prompt starts with; at least its last token stays to be computed."""
        pages: list[int] = []
        for digest in digests_of(tokens[:-1], adapter):
            page = self._known.get(digest)
            if page is None:
                break
            pages.append(page)
        for page in pages:
            self._idle.pop(page, None)
        self._users.update(pages)
        return pages

    def publish(self, tokens: Sequence[int], pages: Sequence[int], adapter: str | None = None) -> None:
        """Let others use the whole pages of a prompt that was computed; its user keeps them."""
        for digest, page in zip(digests_of(tokens, adapter), pages, strict=False):
            if digest not in self._known and page not in self._digests:
                self._known[digest] = page
                self._digests[page] = digest

    def release(self, pages: Sequence[int]) -> None:
        """Give pages back; the last ones of a prompt become idle first, since a prefix is of use without them."""
        for page in reversed(pages):
            self._users[page] -= 1
            if self._users[page] == 0:
                del self._users[page]
                if page in self._digests:
                    self._idle[page] = None
                else:
                    self._free.append(page)


def digests_of(tokens: Sequence[int], adapter: str | None) -> list[bytes]:
    """Return one digest per whole page, each of everything from the beginning up to the end of that page."""
    digests: list[bytes] = []
    digest = hashlib.sha256(repr(adapter).encode()).digest()
    for start in range(0, len(tokens) - PAGE + 1, PAGE):
        digest = hashlib.sha256(digest + array("q", tokens[start : start + PAGE]).tobytes()).digest()
        digests.append(digest)
    return digests


def pages_for(num_tokens: int) -> int:
    """Return how many pages hold so many tokens."""
    return -(-num_tokens // PAGE)
