"""Images and sound: a model answers as transformers' own processor and `generate` would."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from media_models import picture, plain_answer, save_family, sound

from llamafactory.chat import ChatModel
from llamafactory.data.conversation import Message, Role
from llamafactory.data.media.medium import Medium
from llamafactory.data.media.placing import place_media
from llamafactory.extras.errors import UserError


def start(folder: Path, **values: Any) -> ChatModel:
    base = {"model_name_or_path": str(folder), "infer_dtype": "float32", "max_new_tokens": 8, "do_sample": False}
    return ChatModel({**base, **values})


def part(kind: str, content: Any) -> dict[str, Any]:
    return {"type": kind, kind: content}


@pytest.fixture(scope="module")
def llava_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family("llava", tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def llava(llava_dir: Path) -> Iterator[ChatModel]:
    model = start(llava_dir)
    yield model
    model.close()


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("llava", "image"),
        ("qwen2_audio", "audio"),
        pytest.param("gemma3", "image", marks=pytest.mark.slow),
        pytest.param("idefics3", "image", marks=pytest.mark.slow),
    ],
)
def test_an_answer_is_that_of_plain_transformers(family: str, kind: str, tmp_path: Path) -> None:
    folder = save_family(family, tmp_path)
    model = start(folder)
    content = picture() if kind == "image" else sound()
    question = [{"role": "user", "content": "Count to three."}]

    (answer,) = model.chat(question, **{f"{kind}s": [content]})
    (text_only,) = model.chat(question)

    words = part("text", "Count to three.")
    expected = plain_answer(folder, [{"role": "user", "content": [part(kind, content), words]}], 8)
    assert (answer.response_text, answer.prompt_length) == expected
    assert "".join(model.stream_chat(question, **{f"{kind}s": [content]})) == answer.response_text
    assert (text_only.response_text, text_only.prompt_length) == plain_answer(
        folder, [{"role": "user", "content": [words]}], 8
    )
    model.close()


def test_media_stand_at_their_marks_in_several_turns(llava: ChatModel, llava_dir: Path) -> None:
    images = [picture(seed) for seed in range(3)]
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Is <image> like <image>?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "And <image>"},
    ]

    (answer,) = llava.chat(talk, images=images)

    text = [part("text", word) for word in ("Be brief.", "Is ", " like ", "?", "Yes.", "And ")]
    pixels = [part("image", image) for image in images]
    expected = plain_answer(
        llava_dir,
        [
            {"role": "system", "content": [text[0]]},
            {"role": "user", "content": [text[1], pixels[0], text[2], pixels[1], text[3]]},
            {"role": "assistant", "content": [text[4]]},
            {"role": "user", "content": [text[5], pixels[2]]},
        ],
        8,
    )
    assert (answer.response_text, answer.prompt_length) == expected


def test_control_tokens_that_a_user_types_are_text(llava: ChatModel) -> None:
    text = "What is <image> or <|im_end|>?"

    request = llava.chat_request([Message(Role.USER, text, parts=(Medium("image", picture()), text))])
    ids, inputs = llava.engine.make_prompt(request)  # type: ignore[attr-defined]

    image_id = llava.engine.tokenizer.convert_tokens_to_ids("<image>")
    assert ids.count(image_id) == 4  # those of the picture
    assert ids.count(llava.engine.tokenizer.eos_token_id) == 1
    assert set(inputs) == {"pixel_values"}


def test_images_and_texts_are_answered_side_by_side(llava: ChatModel) -> None:
    def ask(number: int) -> str:
        media = {"images": [picture(number)]} if number % 2 else {}
        return llava.chat([{"role": "user", "content": f"Count to {number}."}], **media)[0].response_text

    alone = [ask(number) for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, range(6))) == alone


def test_several_answers_logprobs_and_stop_texts_with_an_image(llava: ChatModel) -> None:
    question = [{"role": "user", "content": "Count."}]
    answers = llava.chat(
        question, images=[picture()], do_sample=True, seed=1, temperature=2.0, top_p=1.0, n=2, logprobs=2
    )

    assert answers[0].response_text != answers[1].response_text
    assert all(len(token.top) == 2 for answer in answers for token in answer.logprobs)
    assert answers == llava.chat(
        question, images=[picture()], do_sample=True, seed=1, temperature=2.0, top_p=1.0, n=2, logprobs=2
    )


def test_what_cannot_be_read_is_one_sentence(llava: ChatModel, llava_dir: Path, tiny_llama_dir: Path) -> None:
    question = [{"role": "user", "content": "Count."}]
    for media, sentence in (
        ({"audios": [sound()]}, "takes no audio here: it reads text and image"),
        ({"videos": [[picture()]]}, "takes no video here"),
        ({"images": [b"\x89PNG nonsense"]}, "The image cannot be read as one of PNG"),
        ({"images": ["/nowhere/x.png"]}, "The image cannot be read"),
    ):
        with pytest.raises(UserError, match=sentence):
            llava.chat(question, **media)
    text_model = start(tiny_llama_dir)
    with pytest.raises(UserError, match="This model takes no image here: it reads text only"):
        text_model.chat(question, images=[picture()])
    text_model.close()
    named = start(llava_dir, template="chatml")
    with pytest.raises(UserError, match="serve the model with `template: auto`"):
        named.chat(question, images=[picture()])
    named.close()


def test_pixels_that_break_the_model_end_their_own_request_only(llava: ChatModel, monkeypatch: Any) -> None:
    writer: Any = llava.engine.media  # type: ignore[attr-defined]
    write = writer.write

    def write_wrong(request: Any) -> Any:
        prompt = write(request)
        return prompt._replace(inputs={"pixel_values": prompt.inputs["pixel_values"][:, :, :5]})

    monkeypatch.setattr(writer, "write", write_wrong)
    with pytest.raises(UserError, match="The model cannot read these media"):
        llava.chat([{"role": "user", "content": "Count."}], images=[picture()])
    monkeypatch.undo()

    assert llava.chat([{"role": "user", "content": "Count."}], images=[picture()])[0].response_length > 0


def test_marks_and_media_have_to_match() -> None:
    messages = [Message(Role.USER, "<image> and <audio>")]
    image, other = object(), object()

    with pytest.raises(UserError, match="There are 2 media of the kind image, but 1 marks <image>"):
        place_media(messages, {"image": [image, other]})  # type: ignore[list-item]
    (placed,) = place_media(messages, {"image": [image]})  # type: ignore[list-item]
    assert placed.content == " and <audio>"
    assert [item.source for item in placed.media] == [image]
    with pytest.raises(UserError, match="no message of the user"):
        place_media([Message(Role.OBSERVATION, "x")], {"image": [image]})  # type: ignore[list-item]
