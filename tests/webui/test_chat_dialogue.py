"""The chat box without its widgets: what is kept, what is shown, and how answers arrive and stop."""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from model_making import save_adapter

from llamafactory.chat import ChatModel
from llamafactory.chat.answer_parts import AnswerParts
from llamafactory.data.conversation import Role
from llamafactory.data.tools import FunctionCall
from llamafactory.extras.errors import UserError
from llamafactory.webui.chat.answering import Settings, StopSignals, answer, check_tools
from llamafactory.webui.chat.dialogue import Dialogue, Media, Turn
from llamafactory.webui.chat.escaping import WORD_JOINER, plain_line, safe_markdown, unescaped
from llamafactory.webui.chat.loaded import ModelSlot, plan_voices
from llamafactory.webui.chat.shown import show_dialogue, turn_of


LABELS = {
    "thinking": "Thinking",
    "thought": "Thought",
    "call": "Call",
    "result": "Result",
    "stopped": "stopped",
    "cut": "cut",
}
QUESTION = Dialogue((Turn(Role.USER, "Count to three."),))
GREEDY = Settings(options={"do_sample": False, "max_new_tokens": 12})
LONG = Settings(options={"do_sample": False, "max_new_tokens": 450, "ignore_eos": True})


def answered(text: str, thought: str = "", calls: tuple[FunctionCall, ...] = ()) -> Turn:
    return Turn(Role.ASSISTANT, "", AnswerParts(text, thought, calls))


@pytest.fixture(scope="module")
def arguments(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    adapter = save_adapter(tiny_llama_dir, tmp_path_factory.mktemp("chat") / "adapter")
    return {
        "model_name_or_path": str(tiny_llama_dir),
        "adapter_name_or_path": str(adapter),
        "infer_dtype": "float32",
    }


@pytest.fixture(scope="module")
def base_arguments(tiny_llama_dir: Path) -> dict[str, Any]:
    return {"model_name_or_path": str(tiny_llama_dir), "infer_dtype": "float32"}


@pytest.fixture(scope="module")
def slot(arguments: dict[str, Any], base_arguments: dict[str, Any]) -> Iterator[ModelSlot]:
    slot = ModelSlot()
    slot.load(arguments, base_arguments)
    yield slot
    slot.unload()


def run(slot: ModelSlot, names: list[str], dialogue: Dialogue, settings: Settings, stop_after: int = 0) -> Any:
    """Return all states of an answer; with stop_after the button is pressed after so many."""

    async def collect() -> list[list[Dialogue]]:
        stop = asyncio.Event()
        states = []
        async for state in answer([(slot.voice(name), dialogue) for name in names], settings, stop):
            states.append(state)
            if len(states) == stop_after:
                stop.set()
        return states

    return asyncio.run(collect())


def text_of(dialogue: Dialogue) -> str:
    parts = dialogue.turns[-1].parts
    assert parts is not None
    return parts.text


def test_base_and_tuned_answer_side_by_side_from_one_set_of_weights(
    slot: ModelSlot, arguments: dict[str, Any], base_arguments: dict[str, Any]
) -> None:
    tuned, base = run(slot, ["tuned", "base"], QUESTION, GREEDY)[-1]

    assert len({id(voice.model) for voice in slot.voices}) == 1
    for dialogue, alone in ((tuned, arguments), (base, base_arguments)):
        model = ChatModel(alone)
        (response,) = model.chat(QUESTION.messages(()), **GREEDY.options)
        model.close()
        assert text_of(dialogue) == response.response_text
    assert text_of(tuned) != text_of(base)


def test_an_answer_grows_and_says_that_it_was_cut(slot: ModelSlot) -> None:
    states = run(slot, ["tuned"], QUESTION, LONG)

    texts = [text_of(dialogue) for (dialogue,) in states]
    assert len(texts) > 1
    assert all(late.startswith(early) for early, late in itertools.pairwise(texts))
    assert states[-1][0].turns[-1].note == "cut"


def test_the_stop_button_keeps_what_was_written_and_frees_the_model(slot: ModelSlot) -> None:
    engine: Any = slot.voices[0].model.engine
    num_before = engine.stats().num_answer_tokens

    *_, (dialogue,) = run(slot, ["base"], QUESTION, LONG, stop_after=2)

    assert dialogue.turns[-1].note == "stopped"
    assert text_of(dialogue)
    deadline = time.monotonic() + 10
    while engine.stats().num_running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.stats().num_running == 0
    assert engine.stats().num_answer_tokens - num_before < 450


def test_unloading_while_somebody_reads_ends_the_answer_with_the_reason(base_arguments: dict[str, Any]) -> None:
    slot = ModelSlot()
    slot.load(base_arguments)

    async def unload_midway() -> Dialogue:
        last = QUESTION
        async for (dialogue,) in answer([(slot.voice(), QUESTION)], LONG, asyncio.Event()):
            last = dialogue
            if slot.is_loaded:
                await asyncio.to_thread(slot.unload)
        return last

    dialogue = asyncio.run(unload_midway())

    assert "closed" in dialogue.turns[-1].error
    assert not slot.is_loaded
    with pytest.raises(UserError, match="load one first"):
        slot.voice()


def test_a_failed_answer_gives_way_to_the_next_words() -> None:
    failed = QUESTION.with_answer(Turn(Role.ASSISTANT, "", AnswerParts("", "", ()), error="no room"))

    assert failed.with_turn(Turn(Role.USER, "Again.")).turns == (QUESTION.turns[0], Turn(Role.USER, "Again."))
    assert failed.messages(()) == QUESTION.messages(())


def test_a_request_that_does_not_fit_is_answered_with_the_reason(slot: ModelSlot) -> None:
    (dialogue,) = run(slot, ["base"], Dialogue((Turn(Role.USER, "word " * 600),)), GREEDY)[-1]

    assert "no room" in dialogue.turns[-1].error


def test_loading_twice_or_at_once_is_refused(slot: ModelSlot, arguments: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="unload it first"):
        slot.load(arguments)

    def load_in_between(_: dict[str, Any]) -> Any:
        other.load(arguments)

    other = ModelSlot(load_in_between)
    with pytest.raises(UserError, match="right now"):
        other.load(arguments)
    assert not other.is_loaded


def test_what_cannot_be_switched_is_loaded_twice(arguments: dict[str, Any], base_arguments: dict[str, Any]) -> None:
    two = {**arguments, "adapter_name_or_path": "one,two"}
    full = {**base_arguments, "model_name_or_path": "tuned"}

    assert plan_voices(two, base_arguments).models == (two, base_arguments)
    assert plan_voices(full, base_arguments).models == (full, base_arguments)
    assert plan_voices({**arguments, "infer_backend": "vllm"}, base_arguments).models[1] == base_arguments
    with pytest.raises(UserError, match="nothing to compare"):
        plan_voices(base_arguments, base_arguments)


def test_each_browser_stops_its_own_answers() -> None:
    signals = StopSignals()
    mine, other = signals.begin("mine"), signals.begin("other")

    assert signals.stop("mine") == 1
    assert (mine.is_set(), other.is_set()) == (True, False)
    signals.end("mine", mine)
    assert (signals.is_answering("mine"), signals.is_answering("other")) == (False, True)


def test_editing_goes_back_to_a_message_and_changes_an_answer_in_place() -> None:
    talk = QUESTION.with_turn(answered("one", "hm")).with_turn(Turn(Role.USER, "More.")).with_turn(answered("two"))

    assert talk.edited(0, "Count to four.").turns == (Turn(Role.USER, "Count to four."),)
    changed = talk.edited(1, "uno")
    assert changed.turns[1].parts == AnswerParts("uno", "hm", ())
    assert changed.turns[2:] == talk.turns[2:]
    assert talk.edited(9, "x") == talk
    assert talk.before_answer().turns == talk.turns[:3]


def test_shown_messages_lead_back_to_their_turns() -> None:
    call = FunctionCall("look", '{"at": 1}')
    talk = QUESTION.with_turn(answered("", "hm", (call,))).with_turn(Turn(Role.OBSERVATION, "2"))
    talk = talk.with_turn(answered("It is 2."))

    shown = show_dialogue(talk, LABELS, escape=True)

    assert [message["role"] for message in shown] == ["user", "assistant", "assistant", "user", "assistant"]
    assert [turn_of(talk, place, LABELS) for place in range(-1, 6)] == [-1, 0, 1, 1, 2, 3, -1]
    assert [message.get("metadata", {}).get("title") for message in shown[1:3]] == ["Thought", "Call: look"]
    assert shown[1]["metadata"]["status"] == "done"


def test_files_stand_in_front_of_what_is_said_about_them_and_are_shown() -> None:
    turn = Turn(Role.USER, "What is this?", media=Media(images=("a.png",), audios=("b.wav",)))

    message = turn.as_message(())
    shown = show_dialogue(Dialogue((turn,)), LABELS, escape=True)

    assert [(medium.kind, medium.source) for medium in message.media] == [("image", "a.png"), ("audio", "b.wav")]
    assert message.parts[-1] == message.content == "What is this?"
    assert [item["content"] for item in shown] == [{"path": "a.png"}, {"path": "b.wav"}, "What is this?"]


def test_an_open_thought_is_marked_as_such() -> None:
    talk = QUESTION.with_answer(answered("", "hm"))

    (thought,) = show_dialogue(talk, LABELS, escape=True, is_writing=True)[1:]

    assert thought["metadata"] == {"title": "Thinking", "status": "pending"}


HOSTILE = [
    "<script>alert(1)</script>",
    "a <img src=x onerror=alert(1)> b",
    "`<img src=x>`",
    "``` <img src=x>",
    "> ```\n<img src=x>",
    "- ```\n  a\n<img src=x>",
    "~~~\n```\n~~~\n<img src=x>",
    "  ```\na\n```\n<img src=x>",
    "```\na\n```~~~\n<img src=x>\n```\n",
    "a ` b\nx ` <img src=x> ` y",
    "| a |\n|---|\n| ` | <img src=x> ` |",
    "\\` <img src=x> \\`",
    "<!-- <b> -->",
    "![pixel](https://example.org/x.png)",
    "`![pixel](https://example.org/x.png)`",
    "[a]: https://example.org/x.png\n\n![a]",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_a_model_writes_becomes_html_or_fetches_a_picture(text: str, rendered: Callable[[str], str]) -> None:
    page = rendered(safe_markdown(text))

    assert not any(tag in page for tag in ("<img", "<script", "<b>", "<!--"))


@pytest.fixture(scope="module")
def rendered() -> Callable[[str], str]:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": True}).enable("table").render


def test_code_keeps_its_characters(rendered: Callable[[str], str]) -> None:
    code = "```html\n<b>x</b> & y\n```"
    text = f"Use `List<int>` & **bold**:\n{code}\nand x < y."

    safe = safe_markdown(text)

    assert code in safe
    page = rendered(safe)
    assert "<strong>bold</strong>" in page
    assert "x &lt; y" in page
    assert f"<code>List&lt;{WORD_JOINER}int&gt;</code> &amp;" in page


@pytest.mark.parametrize("text", [*HOSTILE, "5 < 6 & `a<b`", "&lt;"])
def test_an_edited_message_is_what_was_typed(text: str) -> None:
    if "&lt;" not in text:
        assert unescaped(safe_markdown(text)) == text


def test_names_are_one_plain_line(rendered: Callable[[str], str]) -> None:
    page = rendered(plain_line("<img src=x>\n# [a](b) `c` *d* _e_"))

    assert page == "<p>&lt;img src=x&gt; # [a](b) `c` *d* _e_</p>\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", ""),
        ('[{"name": "look", "parameters": {}}]', ""),
        ('[{"type": "function", "function": {"name": "look"}}]', ""),
        ("[{]", "JSON"),
        ("3", "name"),
        ('[{"description": "none"}]', "no name"),
        ("[" * 100_000, "JSON"),
    ],
)
def test_tools_are_checked_as_they_are_typed(text: str, problem: str) -> None:
    assert problem in check_tools(text)
    assert bool(problem) == bool(check_tools(text))
