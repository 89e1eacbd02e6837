"""Which template a run uses: the model's own Jinja when none is named, else a row of TEMPLATES.

A named template is written into the tokenizer as Jinja, so that the saved model answers with plain transformers
exactly as it was trained.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from ..extras.logging import get_logger, notice_once
from ..extras.registry import Registry
from .jinja_template import JinjaTemplate
from .rendering import Template
from .template_files import load_templates


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..hparams import DataArguments

__all__ = ["TEMPLATES", "Template", "get_template_and_fix_tokenizer", "parse_template"]

logger = get_logger(__name__)

AUTO = "auto"


TEMPLATES: Registry[Template] = Registry("template", load_templates())


def get_template_and_fix_tokenizer(tokenizer: "PreTrainedTokenizerBase", data_args: "DataArguments") -> Template:
    """Pick the template of a run and make the tokenizer fit it."""
    template = pick_template(tokenizer, data_args.template)
    template = template.with_thinking(data_args.enable_thinking, data_args.preserve_thinking)
    template = replace(template, allow_special_tokens=data_args.allow_special_tokens)
    if data_args.default_system is not None:
        template = replace(template, default_system=data_args.default_system)
    if data_args.tool_format:
        template = template.with_tool_format(data_args.tool_format)
    return template.fix_tokenizer(tokenizer)


def pick_template(tokenizer: "PreTrainedTokenizerBase", name: str | None) -> Template:
    """Look a template up by name; None and "auto" stand for the model's own."""
    return parse_template(tokenizer) if name is None or name == AUTO else TEMPLATES.get(name)


def parse_template(tokenizer: "PreTrainedTokenizerBase") -> Template:
    """Return the tokenizer's own chat template, or `empty` with a notice when it has none."""
    if tokenizer.chat_template:
        return JinjaTemplate(name=AUTO)
    notice_once(
        logger,
        "This model's tokenizer has no chat template and none is named: `template: empty` is used, which writes "
        "the texts one after another. Name a template (for instance `template: chatml`) for a chat model.",
    )
    return TEMPLATES.get("empty")
