"""Where browsers come to talk: checks what their controls say, asks the loaded model, and keeps nothing of theirs."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, TypeAlias

from ...data.conversation import Role
from ...extras.errors import UserError
from ...hparams.schema import list_params
from ...hparams.values import ValueProblem, coerce
from .answering import Settings, StopSignals, answer, check_tools
from .dialogue import Dialogue, Media, Turn
from .loaded import ModelSlot


Dialogues: TypeAlias = tuple[Dialogue, ...]
"""One for each voice of the loaded model; what the user said is the same in all."""
OPTIONS = ("max_new_tokens", "temperature", "top_p", "skip_special_tokens")
MAX_CHARACTERS = 1_000_000
"""Of one message; a longer one only keeps the tokenizer busy."""
SPOKEN_ROLES = (Role.USER, Role.OBSERVATION)


class ChatDesk:
    """One for the page: the loaded model, and who waits for an answer."""

    def __init__(self, slot: ModelSlot | None = None) -> None:
        self.slot = slot or ModelSlot()
        self.stops = StopSignals()

    def speak(self, dialogues: Dialogues, role: str, text: str, media: Media | None = None) -> Dialogues:
        """Return the dialogues with what the user says."""
        if role not in SPOKEN_ROLES:
            raise UserError(f"{role!r} cannot speak here; choose user or observation.")
        if len(text) > MAX_CHARACTERS:
            raise UserError(f"The message has {len(text):,} characters; at most {MAX_CHARACTERS:,} can be sent.")
        turn = Turn(Role(role), text, media=media or Media())
        return tuple(dialogue.with_turn(turn) for dialogue in self.fitted(dialogues))

    def fitted(self, dialogues: Dialogues) -> Dialogues:
        """Return one dialogue for each voice; those of a model that was unloaded go on with the new one."""
        num_voices = max(len(self.slot.voices), 1)
        kept = dialogues or (Dialogue(),)
        return (*kept, *(kept[0],) * num_voices)[:num_voices]

    async def answer(self, session: str, dialogues: Dialogues, settings: Settings) -> AsyncGenerator[Dialogues, None]:
        """Give the dialogues with more and more of the answers, until they are whole or this browser stops them."""
        voices = self.slot.voices
        self.slot.voice()  # says so when there is none
        stop = self.stops.begin(session)
        try:
            lanes = list(zip(voices, self.fitted(dialogues), strict=False))
            async with aclosing(answer(lanes, settings, stop)) as states:
                async for state in states:
                    yield tuple(state)
        finally:
            self.stops.end(session, stop)

    async def load(self, arguments: Mapping[str, Any], base: Mapping[str, Any] | None = None) -> None:
        """Load a model without keeping the page waiting for anything else."""
        await asyncio.to_thread(self.slot.load, arguments, base)

    async def unload(self) -> bool:
        """Unload it; answers that are being written end with the reason."""
        return await asyncio.to_thread(self.slot.unload)


def read_settings(controls: Mapping[str, Any]) -> Settings:
    """Check what the controls say, whoever sent it; the names are those of the elements."""
    tools = str(controls.get("tools") or "")
    if problem := check_tools(tools):
        raise UserError(problem)
    options = {name: _checked(name, controls[name]) for name in OPTIONS if controls.get(name) is not None}
    seed = _read_seed(controls.get("seed"))
    thinking = controls.get("enable_thinking")
    return Settings(
        system=str(controls.get("system") or ""),
        tools=tools,
        thinking=None if thinking is None else bool(thinking),
        options=options if seed is None else {**options, "seed": seed},
    )


def _checked(name: str, raw: Any) -> Any:
    value = coerce(list_params("chat")[name], raw)
    if isinstance(value, ValueProblem):
        raise UserError(f"{name} {value.message}.")
    return value


def _read_seed(raw: Any) -> int | None:
    """Return a seed; below 0 stands for a fresh one."""
    if raw in (None, ""):
        return None
    try:
        seed = int(raw)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"The seed is {str(raw)[:40]!r}; it is a whole number, or -1 for a fresh one.") from None
    return None if seed < 0 else seed % 2**63
