"""What OpenAI's own client gets from a real (tiny) model."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from model_making import save_adapter
from openai import OpenAI
from serving import MODEL, serve, wait_until

from llamafactory.chat import ChatModel


QUESTION: list[Any] = [{"role": "user", "content": "Count to three. \u65e5\u672c"}]


@pytest.fixture(scope="module")
def model(tiny_llama_dir: Path) -> Iterator[ChatModel]:
    arguments = {"model_name_or_path": str(tiny_llama_dir), "infer_dtype": "float32", "max_new_tokens": 24}
    model = ChatModel({**arguments, "do_sample": False})
    yield model
    model.close()


@pytest.fixture(scope="module")
def client(model: ChatModel) -> Iterator[OpenAI]:
    with serve(model.engine) as running:
        yield running.client()


def text_of(stream: Any) -> str:
    return "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)


def test_models_are_listed(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "llamafactory"
    with pytest.raises(openai.NotFoundError, match="does not exist; this server has: gpt"):
        client.models.retrieve("gpt-7")


def test_an_answer_is_the_engines_answer(client: OpenAI, model: ChatModel) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION)

    (expected,) = model.chat(QUESTION)
    (choice,) = answer.choices
    assert choice.message.content == expected.response_text
    assert choice.finish_reason == expected.finish_reason
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == expected.prompt_length
    assert answer.usage.completion_tokens == expected.response_length == 24
    assert answer.usage.total_tokens == expected.prompt_length + 24


def test_streamed_text_is_the_whole_text(client: OpenAI, model: ChatModel) -> None:
    chunks = list(client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True))

    assert text_of(chunks) == model.chat(QUESTION)[0].response_text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "length"
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_counts_its_tokens_on_request(client: OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=QUESTION)
    stream = client.chat.completions.create(
        model=MODEL, messages=QUESTION, stream=True, stream_options={"include_usage": True}
    )

    *others, last = list(stream)

    assert last.choices == []
    assert last.usage is not None
    assert whole.usage is not None
    assert last.usage.total_tokens == whole.usage.total_tokens
    assert all(chunk.usage is None for chunk in others)


def test_several_answers(client: OpenAI) -> None:
    options: dict[str, Any] = {"temperature": 2.0, "seed": 1, "n": 3, "max_tokens": 8}
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, **options)

    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 24
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True, **options):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_stop_texts_end_the_answer(client: OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=QUESTION).choices[0].message.content
    assert whole is not None
    stop = whole[5:8]

    stopped = client.chat.completions.create(model=MODEL, messages=QUESTION, stop=[stop, "never seen"])
    stream = client.chat.completions.create(model=MODEL, messages=QUESTION, stop=stop, stream=True)

    assert stopped.choices[0].message.content == whole[: whole.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"
    assert text_of(stream) == whole[: whole.index(stop)]


def test_a_seed_repeats_a_drawn_answer(client: OpenAI) -> None:
    def ask(seed: int) -> str | None:
        options: dict[str, Any] = {"temperature": 2.0, "top_p": 1, "seed": seed}
        return client.chat.completions.create(model=MODEL, messages=QUESTION, **options).choices[0].message.content

    assert ask(1) == ask(1) != ask(2)


def test_temperature_zero_is_the_likeliest(client: OpenAI, model: ChatModel) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)

    assert answer.choices[0].message.content == model.chat(QUESTION, do_sample=False)[0].response_text


@pytest.mark.parametrize("is_stream", [False, True])
def test_log_probabilities(client: OpenAI, is_stream: bool) -> None:
    options: dict[str, Any] = {"logprobs": True, "top_logprobs": 3, "max_tokens": 6, "temperature": 0}
    answer: Any = client.chat.completions.create(model=MODEL, messages=QUESTION, stream=is_stream, **options)

    if is_stream:
        chunks = list(answer)
        tokens = [
            token for chunk in chunks for item in chunk.choices if item.logprobs for token in item.logprobs.content
        ]
        text = text_of(chunks)
    else:
        tokens = answer.choices[0].logprobs.content
        text = answer.choices[0].message.content
    assert len(tokens) == 6
    assert bytes(byte for token in tokens for byte in token.bytes).decode(errors="replace") == text
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.logprob == max(item.logprob for item in token.top_logprobs) < 0


def test_later_turns_see_earlier_ones(client: OpenAI, model: ChatModel) -> None:
    turns: list[Any] = [{"role": "developer", "content": "Be brief."}, {"role": "system", "content": "Count."}]
    turns += [
        *QUESTION,
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": [{"type": "text", "text": "Go"}, {"type": "text", "text": " on."}]},
    ]

    answer = client.chat.completions.create(model=MODEL, messages=turns)

    talk = [*QUESTION, {"role": "assistant", "content": "one"}, {"role": "user", "content": "Go on."}]
    assert answer.choices[0].message.content == model.chat(talk, system="Be brief.\n\nCount.")[0].response_text


def test_an_answer_follows_a_json_schema(client: OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"word": {"enum": ["one", "two"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["word", "count"],
        "additionalProperties": False,
    }
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}

    for seed in range(4):
        answer = client.chat.completions.create(
            model=MODEL, messages=QUESTION, response_format=wanted, temperature=1.5, seed=seed, max_tokens=300
        )
        value = json.loads(answer.choices[0].message.content or "")
        assert value["word"] in ("one", "two")
        assert 0 <= value["count"] <= 9
        assert answer.choices[0].finish_reason == "stop"


def test_completions_continue_a_text(client: OpenAI, model: ChatModel) -> None:
    ids = model.engine.tokenizer("one two").input_ids

    one = client.completions.create(model=MODEL, prompt="one two", max_tokens=6)
    both = client.completions.create(model=MODEL, prompt=["one two", "five"], max_tokens=6, n=2, logprobs=2)
    by_ids = client.completions.create(model=MODEL, prompt=ids, max_tokens=6)
    stream = client.completions.create(model=MODEL, prompt=["one two", "five"], max_tokens=6, stream=True)

    text = one.choices[0].text
    assert one.object == "text_completion"
    assert by_ids.choices[0].text == text
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert both.choices[0].text == both.choices[1].text == text != both.choices[2].text
    assert both.choices[0].logprobs is not None
    assert len(both.choices[0].logprobs.tokens or ()) == 6
    assert both.usage is not None
    assert both.usage.completion_tokens == 24
    pieces = ["", ""]
    for chunk in stream:
        pieces[chunk.choices[0].index] += chunk.choices[0].text
    assert pieces == [text, both.choices[2].text]


def test_adapters_are_chosen_by_name_from_a_list(tiny_llama_dir: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_llama_dir, tmp_path / "mine")
    base = {"model_name_or_path": str(tiny_llama_dir), "infer_dtype": "float32", "do_sample": False}
    model = ChatModel({**base, "infer_adapters": f"poet={adapter}"})
    with serve(model.engine) as running:
        client = running.client()

        def ask(name: str) -> str | None:
            return (
                client.chat.completions.create(model=name, messages=QUESTION, max_tokens=12).choices[0].message.content
            )

        assert [item.id for item in client.models.list()] == [MODEL, f"{MODEL}:poet"]
        texts = [ask(MODEL), ask(f"{MODEL}:poet"), ask(MODEL)]
        for name in (f"{MODEL}:../../etc", f"{MODEL}:mine", "poet", f"{MODEL}:{adapter}"):
            with pytest.raises(openai.NotFoundError, match="does not exist; this server has"):
                ask(name)
    merged = ChatModel({**base, "adapter_name_or_path": str(adapter)})
    assert texts[0] == texts[2] != texts[1]
    assert texts[1] == merged.chat(QUESTION, max_new_tokens=12)[0].response_text
    merged.close()


def test_32_streams_at_once_are_what_they_are_alone(client: OpenAI, model: ChatModel) -> None:
    def ask(number: int) -> Any:
        talk: list[Any] = [{"role": "user", "content": f"Count to {number}."}]
        return talk, client.chat.completions.create(model=MODEL, messages=talk, stream=True, temperature=0)

    def read(number: int) -> tuple[Any, str]:
        talk, stream = ask(number)
        if number == 7:  # leaves midway
            next(iter(stream))
            stream.close()
            return talk, ""
        return talk, text_of(stream)

    before = model.engine.stats()
    with ThreadPoolExecutor(32) as pool:
        results = list(pool.map(read, range(32)))

    for number, (talk, text) in enumerate(results):
        assert text == ("" if number == 7 else model.chat(talk, do_sample=False)[0].response_text)
    wait_until(lambda: model.engine.stats().num_running == model.engine.stats().num_waiting == 0)
    assert model.engine.stats().num_refused == before.num_refused


IMAGE: Any = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role is 'wizard'"),
    ({"messages": [{"role": "user"}]}, "messages.0.content is missing"),
    ({"messages": [*QUESTION, {"role": "assistant", "content": "one"}]}, "nothing to answer"),
    ({"messages": [*QUESTION, {"role": "system", "content": "x"}, *QUESTION]}, "put it in front"),
    ({"temperature": -1}, "temperature is -1"),
    ({"n": 0}, "n is 0"),
    ({"max_tokens": 0}, "max_tokens is 0"),
    ({"extra_body": {"temprature": 1}}, "Unrecognized request argument: temprature. Did you mean 'temperature'"),
    ({"logit_bias": {"x": 1}}, "logit_bias has the token 'x'"),
    ({"logit_bias": {"999999": 1}}, "tokens go from 0 to"),
    ({"top_logprobs": 2}, "needs logprobs"),
    ({"tool_choice": "required"}, "there are no tools"),
    ({"response_format": {"type": "json_schema"}}, "schema is missing"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "wizard"}}}},
        "cannot be followed",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "opens no local",
    ),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "This model takes no image here: it reads text only."),
    (
        {"messages": [{"role": "user", "content": [{"type": "wizard"}]}]},
        "unknown type 'wizard'; use one of text, image",
    ),
    ({"messages": [*QUESTION, {"role": "assistant", "content": [IMAGE]}, *QUESTION]}, "only messages of the user"),
]


@pytest.mark.parametrize(("change", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
@pytest.mark.parametrize("is_stream", [False, True])
def test_bad_requests_are_one_sentence(client: OpenAI, change: dict[str, Any], sentence: str, is_stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": MODEL, "messages": QUESTION, "stream": is_stream, **change})

    body: Any = caught.value.body
    assert sentence in body["message"]
    assert body["type"] == "invalid_request_error"


def test_a_prompt_that_is_too_long_is_a_400_also_in_a_stream(client: OpenAI) -> None:
    for is_stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "one " * 2000}], stream=is_stream
            )
        assert caught.value.code == "context_length_exceeded"


def test_unknown_models_and_routes_are_404(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=QUESTION)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="POST /v1/embeddings: Not Found"):
        client.embeddings.create(model=MODEL, input="x")
