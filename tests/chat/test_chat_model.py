"""ChatModel: one prompt, one answer, however it is asked for."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from model_making import load, save_adapter

from llamafactory.chat import ChatModel
from llamafactory.extras.errors import UserError


QUESTION = [{"role": "user", "content": "Count to three."}]
TALK = [
    *QUESTION,
    {"role": "assistant", "content": "one two three"},
    {"role": "user", "content": "\u65e5\u672c \U0001f642?"},
]


@pytest.fixture(scope="module")
def arguments(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    adapter = save_adapter(tiny_llama_dir, tmp_path_factory.mktemp("chat") / "adapter")
    return {
        "model_name_or_path": str(tiny_llama_dir),
        "adapter_name_or_path": str(adapter),
        "infer_dtype": "float32",
        "max_new_tokens": 24,
    }


@pytest.fixture(scope="module")
def model(arguments: dict[str, Any]) -> ChatModel:
    return ChatModel(arguments)


def engine(model: ChatModel) -> Any:
    return model.engine


@pytest.mark.parametrize("options", [{"do_sample": False}, {"seed": 5, "temperature": 1.5, "top_p": 1.0}], ids=str)
@pytest.mark.parametrize("messages", [QUESTION, TALK], ids=["one turn", "several turns"])
def test_streamed_text_is_the_whole_text(model: ChatModel, messages: list[Any], options: dict[str, Any]) -> None:
    (response,) = model.chat(messages, **options)

    assert "".join(model.stream_chat(messages, **options)) == response.response_text


def test_plain_and_async_calls_agree(model: ChatModel) -> None:
    async def ask() -> tuple[str, str]:
        (response,) = await model.achat(QUESTION, do_sample=False)
        return response.response_text, "".join([text async for text in model.astream_chat(QUESTION, do_sample=False)])

    expected = model.chat(QUESTION, do_sample=False)[0].response_text

    assert asyncio.run(ask()) == (expected, expected)


def test_greedy_answers_are_those_of_plain_transformers(model: ChatModel, arguments: dict[str, Any]) -> None:
    tokenizer = engine(model).tokenizer
    plain = load(arguments["model_name_or_path"], adapter_name_or_path=arguments["adapter_name_or_path"])
    prompt = tokenizer.apply_chat_template(TALK, add_generation_prompt=True, return_tensors="pt", return_dict=True)

    output = plain.generate(**prompt, max_new_tokens=24, do_sample=False, eos_token_id=tokenizer.eos_token_id)

    (response,) = model.chat(TALK, do_sample=False)
    new = output[0, prompt["input_ids"].shape[1] :]
    assert response.response_text == tokenizer.decode(new, skip_special_tokens=True)
    assert response.response_length == len(new)
    assert response.prompt_length == prompt["input_ids"].shape[1]


def test_a_seed_repeats_an_answer_and_leaves_the_global_state_alone(model: ChatModel) -> None:
    options: dict[str, Any] = {"temperature": 2.0, "top_p": 1.0, "num_return_sequences": 3}
    before = torch.random.get_rng_state()

    first = model.chat(QUESTION, seed=1, **options)
    torch.rand(7)
    again = model.chat(QUESTION, seed=1, **options)
    other = model.chat(QUESTION, seed=2, **options)

    assert first == again
    assert first != other
    assert len({response.response_text for response in first}) == 3
    torch.random.set_rng_state(before)
    model.chat(QUESTION, **options)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_finish_reason_says_why(model: ChatModel, tiny_tokenizer: Any) -> None:
    (cut,) = model.chat(QUESTION, do_sample=False, max_new_tokens=3)
    assert (cut.finish_reason, cut.response_length) == ("length", 3)

    (whole,) = model.chat(QUESTION, do_sample=False)
    stop = whole.response_text[4:7]
    (stopped,) = model.chat(QUESTION, do_sample=False, stop=stop)
    assert stopped.finish_reason == "stop"
    assert stopped.response_text == whole.response_text[: whole.response_text.index(stop)]
    assert "".join(model.stream_chat(QUESTION, do_sample=False, stop=[stop])) == stopped.response_text

    names = engine(model)
    names.stop_ids, kept = [tiny_tokenizer(whole.response_text).input_ids[2], *names.stop_ids], names.stop_ids
    (ended,) = model.chat(QUESTION, do_sample=False)
    names.stop_ids = kept
    assert ended.finish_reason == "stop"
    assert whole.response_text.startswith(ended.response_text)


def test_leaving_a_stream_stops_the_model(model: ChatModel) -> None:
    threads = threading.active_count()

    stream = model.stream_chat(QUESTION, do_sample=False, max_new_tokens=400)
    first = next(stream)
    stream.close()

    assert first
    assert threading.active_count() <= threads + 1  # the one worker of the engine, idle again
    assert model.chat(QUESTION, do_sample=False, max_new_tokens=2)[0].response_length == 2


def test_beams_and_streams_agree(model: ChatModel) -> None:
    options: dict[str, Any] = {"num_beams": 2, "max_new_tokens": 6}

    (response,) = model.chat(QUESTION, **options)

    assert "".join(model.stream_chat(QUESTION, **options)) == response.response_text


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"temprature": 1.0}, "Unknown generation option 'temprature'.* Did you mean 'temperature'"),
        ({"temperature": -1.0}, "temperature"),
        ({"num_return_sequences": 0}, "at least one"),
        ({"max_length": 3}, "leaves no room within max_length 3"),
    ],
)
def test_wrong_options_are_one_sentence(model: ChatModel, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        model.chat(QUESTION, **options)
    with pytest.raises(UserError, match=sentence):
        list(model.stream_chat(QUESTION, **options))


def test_a_conversation_that_is_too_long_is_one_sentence(model: ChatModel) -> None:
    with pytest.raises(UserError, match="no room within the model's limit of 512"):
        model.chat([{"role": "user", "content": "one " * 600}])
