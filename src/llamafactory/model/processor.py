"""The processor of a multimodal model: what makes a model's input of images, sound and video, as it was saved."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModelForMultimodalLM, AutoProcessor, PreTrainedConfig, ProcessorMixin

from ..extras.logging import get_logger
from ..extras.packages import is_available


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = get_logger(__name__)

PARTS = {"image": "image_processor", "video": "video_processor", "audio": "feature_extractor"}
"""The parts of a processor by what they read."""


def is_multimodal(config: PreTrainedConfig) -> bool:
    """Tell whether a model reads more than text."""
    parts = ("vision_config", "audio_config", "thinker_config")
    mapping: Any = AutoModelForMultimodalLM._model_mapping
    return any(getattr(config, part, None) is not None for part in parts) and type(config) in mapping


def load_processor(
    source: Path | str, tokenizer: "PreTrainedTokenizerBase", options: dict[str, Any]
) -> ProcessorMixin | None:
    """Return the processor of a multimodal model, around this tokenizer; None where there is none or it cannot run.

    The latter is said once: the model still reads text.
    """
    if not is_multimodal(AutoConfig.from_pretrained(str(source), **options)):
        return None
    try:
        processor: Any = AutoProcessor.from_pretrained(str(source), **options)
    except (ImportError, AttributeError, OSError, ValueError) as error:  # each of them may mean a missing package
        hint = "" if is_available("torchvision") else " It may need torchvision, which is not installed."
        logger.warning("The processor of %s cannot be loaded, so it reads text only: %s.%s", source, error, hint)
        return None
    if not isinstance(processor, ProcessorMixin):
        return None
    if tokenizer.chat_template is None:
        tokenizer.chat_template = getattr(processor, "chat_template", None)
    vars(processor)["tokenizer"] = tokenizer
    return processor


def readable_kinds(processor: ProcessorMixin | None) -> tuple[str, ...]:
    """Return what a processor reads besides text."""
    return tuple(kind for kind, part in PARTS.items() if getattr(processor, part, None) is not None)
