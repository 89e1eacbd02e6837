"""Prompts with images, sound and video: written by the model's own processor, which puts its placeholders there.

They are what `processor.apply_chat_template` of transformers gives for the same conversation.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import TemplateError

from ..data.conversation import Conversation, Message, Role, as_conversation
from ..data.encoding import encoder_of
from ..data.formatter import split_calls
from ..data.jinja_template import JinjaTemplate
from ..data.media.images import PixelBounds, read_image
from ..data.media.medium import MediaKind, Medium
from ..data.media.sounds import read_audio
from ..data.media.videos import FrameBounds, read_video
from ..data.tools import parse_tools
from ..extras.errors import UserError
from ..model.processor import readable_kinds
from .requests import ChatRequest


if TYPE_CHECKING:
    from transformers import ProcessorMixin

    from ..data.template import Template
    from ..hparams import ModelArguments

DEFAULT_RATE = 16000
NOT_INPUTS = ("input_ids", "attention_mask", "labels")


class MediaPrompt(NamedTuple):
    """What the model reads."""

    ids: list[int]
    inputs: Mapping[str, Any]
    """Pixels and features, by the names of the model's own arguments."""


@dataclass(frozen=True)
class MediaBounds:
    """How large media may be when the model gets them."""

    image: PixelBounds
    video: FrameBounds


def read_bounds(model_args: "ModelArguments") -> MediaBounds:
    """Take the bounds out of the arguments."""
    frames = PixelBounds(model_args.video_min_pixels, model_args.video_max_pixels)
    return MediaBounds(
        PixelBounds(model_args.image_min_pixels, model_args.image_max_pixels),
        FrameBounds(model_args.video_fps, model_args.video_maxlen, frames),
    )


class MediaWriter:
    """Writes prompts with one processor."""

    def __init__(self, processor: "ProcessorMixin | None", template: "Template", bounds: MediaBounds) -> None:
        self.processor: Any = processor
        self.template = template
        self.bounds = bounds
        self.kinds = readable_kinds(processor)

    def write(self, request: ChatRequest) -> MediaPrompt:
        """Write the prompt of a conversation; media that the model cannot read are refused."""
        conversation = as_conversation(request.messages, request.system, request.tools)
        template = self._check(conversation)
        if request.thinking is not None:
            template = replace(template, enable_thinking=request.thinking)
        system = conversation.system or template.default_system
        lead = [Message(Role.SYSTEM, system)] if system else []
        tools = [{"type": "function", "function": tool} for tool in parse_tools(conversation.tools)] or None
        try:
            output: Any = self.processor.apply_chat_template(
                [self._as_dict(message) for message in (*lead, *conversation.messages)],
                tools=tools,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"do_sample_frames": False} if "video" in self.kinds else None,
                **self._options(template, conversation),
            )
        except (TemplateError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"This model's processor refuses the conversation: {error}.") from error
        ids: list[int] = output["input_ids"][0].tolist()
        return MediaPrompt(ids, {name: value for name, value in output.items() if name not in NOT_INPUTS})

    def _check(self, conversation: Conversation) -> JinjaTemplate:
        """Refuse what has no place here."""
        for message in conversation.messages:
            for medium in message.media:
                if medium.kind not in self.kinds:
                    able = f"text and {', '.join(self.kinds)}" if self.kinds else "text only"
                    raise UserError(f"This model takes no {medium.kind} here: it reads {able}.")
        if not isinstance(self.template, JinjaTemplate):
            raise UserError(
                f"The template {self.template.name!r} has no place for images, sound or video; serve the model with "
                "`template: auto`, which is its own."
            )
        return self.template

    def _options(self, template: JinjaTemplate, conversation: Conversation) -> dict[str, Any]:
        """Return the template's variables, as far as it has them, and whether texts have to be kept from being read.

        Not every processor can do the latter (Idefics 3), so it is asked for only where a text types control tokens.
        """
        source = str(self.processor.chat_template)
        variables = {name: value for name, value in template.variables.items() if name in source}
        encoder = encoder_of(self.processor.tokenizer, template.allow_special_tokens)
        texts = (conversation.system, conversation.tools, *(message.content for message in conversation.messages))
        is_typed = not template.allow_special_tokens and any(encoder.has_control_text(text) for text in texts)
        return variables | ({"sanitize_control_tokens": True} if is_typed else {})

    def _as_dict(self, message: Message) -> dict[str, Any]:
        """Write a message as processors expect it."""
        if message.role is Role.FUNCTION:
            turn = split_calls(message.content)
            calls = [
                {"type": "function", "function": {"name": call.name, "arguments": call.values}} for call in turn.calls
            ]
            return {"role": "assistant", "content": [as_text(turn.before + turn.after)], "tool_calls": calls}
        role = "tool" if message.role is Role.OBSERVATION else str(message.role)
        return {"role": role, "content": [self._as_part(part) for part in message.parts or (message.content,)]}

    def _as_part(self, part: str | Medium) -> dict[str, Any]:
        return as_text(part) if isinstance(part, str) else {"type": part.kind, part.kind: self._decode(part)}

    def _decode(self, medium: Medium) -> Any:
        kind: MediaKind = medium.kind
        if kind == "image":
            return read_image(medium.source, self.bounds.image)
        if kind == "video":
            return read_video(medium.source, self.bounds.video).frames
        return read_audio(medium.source, getattr(self.processor.feature_extractor, "sampling_rate", DEFAULT_RATE))


def has_media(request: Any) -> bool:
    """Tell whether a request brings more than text."""
    if not isinstance(request, ChatRequest):
        return False
    return any(isinstance(message, Message) and message.media for message in request.messages)


def as_text(text: str) -> dict[str, Any]:
    """Write a text as a part."""
    return {"type": "text", "text": text}
