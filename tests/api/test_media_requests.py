"""Images and sound through OpenAI's client, to tiny models that read them."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from media_models import picture, save_family, sound
from serving import MODEL, Running, serve

from llamafactory.api.media_sources import MediaPolicy
from llamafactory.chat import ChatModel


TEXT = {"type": "text", "text": "Count to three."}


def png(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


def wav() -> bytes:
    import wave

    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((sound() * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def image_part(content: bytes, kind: str = "image/png") -> dict[str, Any]:
    url = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return {"type": "image_url", "image_url": {"url": url, "detail": "low"}}


def start(folder: Path) -> ChatModel:
    base = {"model_name_or_path": str(folder), "infer_dtype": "float32", "max_new_tokens": 8, "do_sample": False}
    return ChatModel(base)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatModel]:
    model = start(save_family("llava", tmp_path_factory.mktemp("llava")))
    yield model
    model.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    (folder / "x.png").write_bytes(png())
    return folder


@pytest.fixture(scope="module")
def running(model: ChatModel, folder: Path) -> Iterator[Running]:
    with serve(model.engine, media=MediaPolicy(folder=folder)) as server:
        yield server


def ask(running: Running, *parts: Any, **options: Any) -> Any:
    messages: Any = [{"role": "user", "content": list(parts)}]
    return running.client().chat.completions.create(model=MODEL, messages=messages, **options)


def test_an_image_is_answered_whole_and_as_a_stream(running: Running, model: ChatModel) -> None:
    (expected,) = model.chat([{"role": "user", "content": TEXT["text"]}], images=[picture()])

    answer = ask(running, image_part(png()), TEXT)
    stream = ask(running, image_part(png()), TEXT, stream=True)
    by_path = ask(running, {"type": "image_url", "image_url": {"url": "x.png"}}, TEXT)

    assert answer.choices[0].message.content == expected.response_text == by_path.choices[0].message.content
    assert answer.usage.prompt_tokens == expected.prompt_length
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == expected.response_text
    assert ask(running, image_part(png(1)), TEXT).usage.prompt_tokens == expected.prompt_length


def test_the_word_image_in_a_text_is_a_word(running: Running) -> None:
    answer = ask(running, {"type": "text", "text": "<image> or <|im_end|>"}, image_part(png()))

    assert answer.choices[0].finish_reason in ("length", "stop")


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ([image_part(b"nonsense")], "The image cannot be read as one of PNG"),
        ([image_part(png()[:60])], "The image cannot be read"),
        ([image_part(png(), "text/html")], "is not a type of image"),
        ([{"type": "image_url", "image_url": {"url": "../../etc/passwd"}}], "not a file in the folder"),
        ([{"type": "image_url", "image_url": {"url": "https://example.org/x.png"}}], "fetches nothing"),
        ([{"type": "image_url"}], "messages.0.content.0.image_url is missing"),
        ([{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}], "takes no audio here"),
        ([image_part(b"x")] * 33, "at most 32 fit"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_media_are_a_400_with_a_sentence(
    running: Running, parts: list[Any], sentence: str, is_stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError, match=sentence):
        ask(running, *parts, TEXT, stream=is_stream)
    assert ask(running, image_part(png()), TEXT).choices[0].finish_reason


def test_a_sound_is_answered(tmp_path: Path) -> None:
    model = start(save_family("qwen2_audio", tmp_path))
    data = base64.b64encode(wav()).decode()
    samples = (sound() * 32767).astype("<i2").astype("float32") / 32768
    expected = model.chat([{"role": "user", "content": TEXT["text"]}], audios=[samples])[0]
    with serve(model.engine) as server:
        answer = ask(server, {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}, TEXT)
        by_url = ask(server, {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{data}"}}, TEXT)

    assert answer.choices[0].message.content == expected.response_text == by_url.choices[0].message.content
    assert answer.usage.prompt_tokens == expected.prompt_length
