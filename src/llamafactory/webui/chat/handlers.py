"""What happens at the chat box: every handler takes the values of the controls and checks them again."""

from collections.abc import AsyncGenerator, Mapping
from typing import Any, TypeAlias

import gradio as gr

from ...data.conversation import Role
from ...extras.errors import UserError
from ..events import QUIET
from ..markup import escape
from ..wording import page_words
from .answering import check_tools
from .desk import ChatDesk, Dialogues, read_settings
from .dialogue import Dialogue, Media
from .escaping import plain_line, unescaped
from .shown import show_dialogue, turn_of


Updates: TypeAlias = dict[Any, Any]
CONTROLS = ("system", "tools", "max_new_tokens", "temperature", "top_p", "seed", "enable_thinking")
CONTROLS += ("skip_special_tokens", "escape_html", "role", "query", "image", "video", "audio")
STREAM: dict[str, Any] = {**QUIET, "concurrency_limit": None}
"""The engine decides how many answers are written at once."""


class ChatHandlers:
    """Connects the elements of the chat box with the desk."""

    def __init__(self, engine: Any, elements: Mapping[str, Any]) -> None:
        self.elements = elements
        self.desk: ChatDesk = engine.chatter
        self.lang = engine.manager.get_elem_by_id("top.lang")

    def connect(self) -> None:
        """Tie every handler to its event."""
        made = self.elements
        inputs = {made[name] for name in (*CONTROLS, "messages")} | {self.lang}
        outputs = [
            made[name]
            for name in ("messages", "chatbot", "chatbot_base", "query", "role", "submit_btn", "stop_btn", "retry_btn")
        ]
        sent = {"inputs": inputs, "outputs": [*outputs, made["image"], made["video"], made["audio"]]}
        gr.on([made["submit_btn"].click, made["query"].submit], self.send, **sent, **STREAM)
        gr.on([made["retry_btn"].click, made["chatbot"].retry], self.retry, inputs=inputs, outputs=outputs, **STREAM)
        made["chatbot"].edit(self.edit, inputs=inputs, outputs=outputs, **STREAM)
        made["chatbot"].undo(self.undo, inputs=inputs, outputs=outputs, **QUIET)
        gr.on([made["clear_btn"].click, made["chatbot"].clear], self.clear, inputs=None, outputs=outputs, **QUIET)
        made["stop_btn"].click(self.stop, inputs=None, outputs=None, **QUIET)
        made["tools"].input(self.look_at_tools, inputs=[made["tools"]], outputs=[made["tools_problem"]], **QUIET)
        escaping = [made["messages"], made["escape_html"], self.lang]
        gr.on(
            [made["escape_html"].change],
            self.show_again,
            inputs=escaping,
            outputs=[made["chatbot"], made["chatbot_base"]],
            **QUIET,
        )

    async def send(self, values: dict[Any, Any], request: gr.Request) -> AsyncGenerator[Updates, None]:
        """Say something and read the answer."""
        given = self._by_name(values)
        text = str(given["query"] or "")
        media = _media(given)
        if not text.strip() and not media:
            gr.Info(self._labels(given)["empty_query"])
            yield {}
            return
        try:
            self.desk.slot.voice()
            read_settings(given)
            dialogues = self.desk.speak(given["messages"] or (), str(given["role"]), text, media)
        except UserError as error:
            gr.Warning(escape(str(error)[:500]))
            yield {}
            return
        emptied = {self.elements[name]: None for name in ("image", "video", "audio")}
        first = {self.elements["query"]: "", self.elements["role"]: "user", **emptied}
        async for updates in self._answer(given, dialogues, request):
            yield first | updates
            first = {}

    async def retry(self, values: dict[Any, Any], request: gr.Request) -> AsyncGenerator[Updates, None]:
        """Answer the last words of the user once more."""
        given = self._by_name(values)
        dialogues: Dialogues = tuple(dialogue.before_answer() for dialogue in given["messages"] or ())
        if not any(dialogue.turns for dialogue in dialogues):
            yield {}
            return
        async for updates in self._answer(given, dialogues, request):
            yield updates

    async def edit(
        self, values: dict[Any, Any], data: gr.EditData, request: gr.Request
    ) -> AsyncGenerator[Updates, None]:
        """Go back to a message of the user, which says something else, and answer that."""
        given = self._by_name(values)
        kept: Dialogues = given["messages"] or ()
        shown_index = data.index[0] if isinstance(data.index, tuple | list) else data.index
        place = turn_of(kept[0], int(shown_index), self._labels(given)) if kept else -1
        if place < 0:
            yield {}
            return
        text = unescaped(str(data.value))
        dialogues = tuple(_edited(dialogue, place, text) for dialogue in kept)
        if dialogues[0].turns[-1].is_answer:
            yield self._shown(given, dialogues)
            return
        async for updates in self._answer(given, dialogues, request):
            yield updates

    def undo(self, values: dict[Any, Any]) -> Updates:
        """Take the last exchange back; what was said stands in the field again."""
        given = self._by_name(values)
        before: Dialogues = tuple(dialogue.before_answer() for dialogue in given["messages"] or ())
        if not before or not before[0].turns:
            return {}
        spoken = before[0].turns[-1]
        dialogues = tuple(Dialogue(dialogue.turns[:-1]) for dialogue in before)
        return self._shown(given, dialogues) | {
            self.elements["query"]: spoken.text,
            self.elements["role"]: str(spoken.role),
        }

    def clear(self) -> Updates:
        """Start a new conversation."""
        empty: Updates = {self.elements[name]: [] for name in ("chatbot", "chatbot_base")}
        return {**empty, self.elements["messages"]: (), self.elements["query"]: "", self.elements["role"]: "user"}

    async def stop(self, request: gr.Request) -> None:
        """Stop what this browser waits for."""
        self.desk.stops.stop(_session(request))

    def look_at_tools(self, text: str) -> Any:
        """Say what is wrong with the tools while they are typed."""
        problem = check_tools(text[:1_000_000])
        return gr.update(value=plain_line(problem), visible=bool(problem))

    def show_again(self, dialogues: Dialogues, escape: bool, lang: str) -> Updates:
        """Draw the chat again after a change of how it looks."""
        labels = page_words("infer", lang)
        return self._chats(dialogues or (), labels, bool(escape), is_writing=False)

    async def _answer(
        self, given: Mapping[str, Any], dialogues: Dialogues, request: gr.Request
    ) -> AsyncGenerator[Updates, None]:
        session = _session(request)
        labels = self._labels(given)
        if self.desk.stops.is_answering(session):
            gr.Info(labels["busy"])
            yield {}
            return
        yield self._shown(given, dialogues) | self._buttons(is_writing=True)
        answered = dialogues
        answered = dialogues
        try:
            settings = read_settings(given)
            async for state in self.desk.answer(session, dialogues, settings):
                answered = state
                yield self._shown(given, state, is_writing=True)
        except UserError as error:
            gr.Warning(escape(str(error)[:500]))
        is_called = any(dialogue.expects_results for dialogue in answered)
        yield (
            self._shown(given, answered)
            | self._buttons(is_writing=False)
            | ({self.elements["role"]: str(Role.OBSERVATION)} if is_called else {})
        )

    def _buttons(self, *, is_writing: bool) -> Updates:
        return {
            self.elements["submit_btn"]: gr.update(visible=not is_writing),
            self.elements["stop_btn"]: gr.update(visible=is_writing),
            self.elements["retry_btn"]: gr.update(interactive=not is_writing),
        }

    def _shown(self, given: Mapping[str, Any], dialogues: Dialogues, *, is_writing: bool = False) -> Updates:
        escape = given["escape_html"] is not False
        chats = self._chats(dialogues, self._labels(given), escape, is_writing=is_writing)
        return {**chats, self.elements["messages"]: dialogues}

    def _chats(self, dialogues: Dialogues, labels: Mapping[str, str], escape: bool, *, is_writing: bool) -> Updates:
        names = ("chatbot", "chatbot_base")
        return {
            self.elements[name]: show_dialogue(dialogue, labels, escape=escape, is_writing=is_writing)
            for name, dialogue in zip(names, dialogues, strict=False)
        }

    def _by_name(self, values: Mapping[Any, Any]) -> dict[str, Any]:
        given = {name: values.get(self.elements[name]) for name in (*CONTROLS, "messages")}
        return {**given, "lang": values.get(self.lang)}

    def _labels(self, given: Mapping[str, Any]) -> dict[str, str]:
        return page_words("infer", str(given["lang"]))


def _session(request: gr.Request) -> str:
    return str(request.session_hash or "")


def _edited(dialogue: Dialogue, place: int, text: str) -> Dialogue:
    return dialogue.edited(place, text)


def _media(given: Mapping[str, Any]) -> Media:
    def listed(name: str) -> tuple[str, ...]:
        return (str(given[name]),) if given[name] else ()

    return Media(listed("image"), listed("video"), listed("audio"))
