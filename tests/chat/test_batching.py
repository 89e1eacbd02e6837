"""N44: an answer does not depend on what is written beside it, and the engine's queue keeps its promises."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import torch
from model_making import save_adapter
from transformers import LlamaForSequenceClassification

from llamafactory.chat import ChatModel
from llamafactory.chat.batch import Limits
from llamafactory.chat.requests import (
    EngineStoppedError,
    QueueFullError,
    Response,
    StreamChunk,
    TooLongError,
    UnknownAdapterError,
)
from llamafactory.extras.errors import UserError


QUESTIONS = [
    [{"role": "user", "content": f"Count to {number}." + " Please do." * (3 * number % 23)}] for number in range(8)
]
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 40}


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model(
    request: pytest.FixtureRequest, tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ChatModel]:
    """A model whose answers differ: the plain one says the same to everything."""
    adapter = save_adapter(tiny_llama_dir, tmp_path_factory.mktemp("batching") / "adapter")
    with fresh(tiny_llama_dir, infer_dtype=request.param, adapter_name_or_path=str(adapter)) as made:
        yield made


class fresh:  # noqa: N801  (read as a verb)
    """A model of its own that is closed at the end."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.model = ChatModel({"model_name_or_path": str(path), "infer_dtype": "float32", **options})

    def __enter__(self) -> ChatModel:
        return self.model

    def __exit__(self, *_: object) -> None:
        self.model.close()


def engine(model: ChatModel) -> Any:
    return model.engine


def limit(model: ChatModel, **limits: Any) -> None:
    """Change the limits of an engine that is idle."""
    scheduler = engine(model).scheduler
    scheduler.limits = scheduler.batch.limits = Limits(**limits)


def together(model: ChatModel, delay: float = 0.0, **options: Any) -> list[Response]:
    async def ask(place: int) -> Response:
        await asyncio.sleep(place * delay)
        return (await model.achat(QUESTIONS[place], **options))[0]

    async def ask_all() -> list[Response]:
        return await asyncio.gather(*map(ask, range(len(QUESTIONS))))

    return asyncio.run(ask_all())


def texts(responses: list[Response]) -> list[str]:
    return [response.response_text for response in responses]


@pytest.mark.parametrize(
    "options", [GREEDY, {"seed": 3, "temperature": 1.5, "top_p": 0.9, "max_new_tokens": 40}], ids=["greedy", "seeded"]
)
@pytest.mark.parametrize("step_tokens", [7, 256])
def test_an_answer_is_the_same_alone_and_under_load(
    model: ChatModel, options: dict[str, Any], step_tokens: int
) -> None:
    limit(model, step_tokens=step_tokens, idle_tokens=2048)
    alone = [model.chat(question, **options)[0] for question in QUESTIONS]

    assert texts(together(model, **options)) == texts(alone)
    assert texts(together(model, delay=0.004, **options)) == texts(alone)
    assert len(set(texts(alone))) > 1


def test_without_native_steps_answers_are_the_same_too(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine(model).scheduler.batch.model, "native", None)
    alone = [model.chat(question, **GREEDY)[0] for question in QUESTIONS]

    assert texts(together(model, **GREEDY)) == texts(alone)


def test_a_known_beginning_is_not_computed_again_and_changes_nothing(model: ChatModel) -> None:
    system = "You count, and you do it well. " * 12
    first = model.chat(QUESTIONS[0], system=system, **GREEDY)[0]
    again = model.chat(QUESTIONS[0], system=system, **GREEDY)[0]
    other = model.chat(QUESTIONS[1], system=system, **GREEDY)[0]

    assert first.response_text == again.response_text
    assert first.cached_length < other.cached_length <= again.cached_length < first.prompt_length
    assert again.cached_length % 32 == 0


def test_several_answers_share_their_prompt_and_stream_mixed(model: ChatModel) -> None:
    options: dict[str, Any] = {"n": 3, "seed": 5, "temperature": 1.5, "top_p": 1.0, "max_new_tokens": 20}
    whole = model.chat(QUESTIONS[3], **options)

    chunks: list[StreamChunk] = list(model.stream_chunks(model.chat_request(QUESTIONS[3], **options)))

    assert [response.index for response in whole] == [0, 1, 2]
    assert len(set(texts(whole))) == 3
    for response in whole:
        own = [chunk for chunk in chunks if chunk.index == response.index]
        assert "".join(chunk.text for chunk in own) == response.response_text
        assert [chunk.finish_reason for chunk in own if chunk.finish_reason] == [response.finish_reason]
    assert [chunk.index for chunk in chunks] != sorted(chunk.index for chunk in chunks)


def test_logprobs_come_with_their_tokens(model: ChatModel) -> None:
    (response,) = model.chat(QUESTIONS[2], logprobs=2, ignore_eos=True, **GREEDY)
    streamed = list(model.stream_chunks(model.chat_request(QUESTIONS[2], logprobs=2, ignore_eos=True, **GREEDY)))

    assert len(response.logprobs) == response.response_length
    assert [item for chunk in streamed for item in chunk.logprobs] == list(response.logprobs)
    assert all(
        item.token_id == item.top[0].token_id and item.logprob == item.top[0].logprob for item in response.logprobs
    )
    tokenizer = engine(model).tokenizer
    raw = b"".join(item.raw for item in response.logprobs if item.token_id not in tokenizer.all_special_ids)
    assert raw.decode(errors="replace") == response.response_text


def test_stop_ids_of_a_request_end_it(model: ChatModel) -> None:
    (whole,) = model.chat(QUESTIONS[2], logprobs=0, **GREEDY)
    stop = whole.logprobs[4].token_id
    first = [item.token_id for item in whole.logprobs].index(stop)

    (short,) = model.chat(QUESTIONS[2], stop_token_ids=[stop], **GREEDY)

    assert (short.finish_reason, short.response_length) == ("stop", first + 1)


def test_a_reader_who_leaves_frees_the_row_and_the_others_go_on(model: ChatModel) -> None:
    expected = model.chat(QUESTIONS[1], **GREEDY)[0].response_text
    before = engine(model).stats()

    async def leave() -> str:
        request = model.chat_request(QUESTIONS[0], max_new_tokens=400, do_sample=False, ignore_eos=True)
        other = asyncio.create_task(model.achat(QUESTIONS[1], **GREEDY))
        async with aclosing(model.engine.stream_chat(request)) as stream:
            async for _ in stream:
                break
        return (await other)[0].response_text

    assert asyncio.run(leave()) == expected
    wait_until_idle(model)
    after = engine(model).stats()
    assert after.num_cancelled == before.num_cancelled + 1
    assert after.num_answer_tokens - before.num_answer_tokens < 200
    assert engine(model).scheduler.batch.pool.num_available == engine(model).scheduler.batch.pool.num_pages


def wait_until_idle(model: ChatModel) -> None:
    deadline = time.monotonic() + 20
    while engine(model).stats().num_running and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not engine(model).stats().num_running


def test_a_full_queue_refuses_at_once_and_takes_again_later(tiny_llama_dir: Path) -> None:
    with fresh(tiny_llama_dir) as model:
        limit(model, max_running=1, max_waiting=1)

        async def ask() -> list[Any]:
            calls = [model.achat(question, ignore_eos=True, **GREEDY) for question in QUESTIONS[:4]]
            return await asyncio.gather(*calls, return_exceptions=True)

        results = asyncio.run(ask())
        refused = [result for result in results if isinstance(result, QueueFullError)]

        assert len(refused) == 2
        assert "try again later" in str(refused[0])
        assert engine(model).stats().num_refused == 2
        assert model.chat(QUESTIONS[0], **GREEDY)


def test_rows_wait_for_pages_instead_of_failing(tiny_llama_dir: Path) -> None:
    with fresh(tiny_llama_dir) as model:
        expected = texts(together(model, **GREEDY))
        batch = engine(model).scheduler.batch
        taken = batch.pool.take(batch.pool.num_available - 14)

        assert texts(together(model, **GREEDY)) == expected
        batch.pool.release(taken)

        batch.pool.num_pages = 1
        with pytest.raises(TooLongError, match="set aside for keys and values"):
            model.chat(QUESTIONS[0], **GREEDY)


def test_closing_fails_what_is_unfinished_and_what_comes_later(tiny_llama_dir: Path) -> None:
    with fresh(tiny_llama_dir) as model:
        stream = model.stream_chunks(model.chat_request(QUESTIONS[0], max_new_tokens=400, ignore_eos=True))
        next(stream)
        threading.Timer(0.01, model.close).start()

        with pytest.raises(EngineStoppedError):
            list(stream)
        with pytest.raises(EngineStoppedError):
            model.chat(QUESTIONS[0], **GREEDY)


def test_requests_choose_adapters_from_the_list(tiny_llama_dir: Path, tmp_path: Path) -> None:
    paths = {name: save_adapter(tiny_llama_dir, tmp_path / name, seed) for seed, name in enumerate(("one", "two"), 1)}
    expected: dict[str | None, str] = {}
    for name in (None, *paths):
        merged = {} if name is None else {"adapter_name_or_path": str(paths[name])}
        with fresh(tiny_llama_dir, **merged) as alone:
            expected[name] = alone.chat(QUESTIONS[1], **GREEDY)[0].response_text

    served = ",".join(f"{name}={path}" for name, path in paths.items())
    with fresh(tiny_llama_dir, infer_adapters=served) as model:

        async def ask_all() -> list[str]:
            calls = [model.achat(QUESTIONS[1], adapter=name, **GREEDY) for name in expected]
            return [answers[0].response_text for answers in await asyncio.gather(*calls)]

        assert asyncio.run(ask_all()) == list(expected.values())
        assert len(set(expected.values())) == 3
        assert model.engine.adapter_names == ("one", "two")
        with pytest.raises(UnknownAdapterError, match="'three' is not served; those that are: one, two"):
            model.chat(QUESTIONS[1], adapter="three")


def test_a_plain_prompt_is_continued_as_it_stands(model: ChatModel) -> None:
    tokenizer = engine(model).tokenizer
    text = tokenizer.apply_chat_template(QUESTIONS[1], add_generation_prompt=True, tokenize=False)
    request = model.completion_request(text, **GREEDY)

    (response,) = asyncio.run(model.engine.chat(request))

    assert response.response_text == model.chat(QUESTIONS[1], **GREEDY)[0].response_text


def test_without_a_cache_one_request_at_a_time_says_the_same(tiny_llama_dir: Path) -> None:
    with fresh(tiny_llama_dir) as paged, fresh(tiny_llama_dir, use_kv_cache=False) as solo:
        options: dict[str, Any] = {**GREEDY, "frequency_penalty": 0.5, "n": 2, "max_new_tokens": 12}
        assert engine(solo).scheduler.batch is None
        assert texts(solo.chat(QUESTIONS[1], **options)) == texts(paged.chat(QUESTIONS[1], **options))


def test_the_global_random_state_is_left_alone(model: ChatModel) -> None:
    before = torch.random.get_rng_state()
    model.chat(QUESTIONS[0], max_new_tokens=4)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_reward_model_scores_and_does_not_answer(tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    config = tiny_llama().config
    config.num_labels = 1
    reward: Any = LlamaForSequenceClassification(config).eval()
    reward.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    words = ["one two", "three", "one two three four five"]
    rows = [tiny_tokenizer(text, return_tensors="pt") for text in words]
    with torch.no_grad():
        expected = [float(reward(**row).logits) for row in rows]
        short = float(reward(input_ids=rows[2]["input_ids"][:, :2]).logits)

    with fresh(tmp_path, stage="rm") as model:
        assert model.get_scores(words) == pytest.approx(expected, abs=1e-5)
        assert asyncio.run(model.aget_scores(words[2:], max_length=2)) == pytest.approx([short], abs=1e-5)
        assert not model.engine.can_generate
        with pytest.raises(UserError, match="reward model"):
            model.chat(QUESTIONS[0])


def test_a_model_that_answers_has_no_scores(model: ChatModel) -> None:
    with pytest.raises(UserError, match="no score"):
        model.get_scores(["one"])
