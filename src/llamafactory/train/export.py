"""The `export` command: one plain model folder out of a base and its adapters, checked before it appears.

Merging is done in float32 and cast once at the end. The folder is written aside, read back from disk, and compared on
real prompts with the model it was made from; only then does it get its name. So whatever stands at `export_dir` works.
"""

import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoTokenizer

from ..data.slot_template import SlotTemplate
from ..data.template import get_template_and_fix_tokenizer
from ..extras.errors import UserError
from ..extras.logging import get_logger
from ..hparams.parser import Args, get_infer_args
from ..model.adapter import load_adapter, merge_adapters
from ..model.adapters.saved import refuse_merge
from ..model.base_changes import read_changes
from ..model.dtype import NAMED_DTYPES, SHORT, stored_dtype
from ..model.load_errors import reading_model
from ..model.loader import check_vocabulary, load_config, load_tokenizer, load_weights
from ..model.merge import merge_adapter
from ..model.model_utils.rope import stretch_positions
from ..model.model_utils.valuehead import exported_head, head_of, take_score
from ..model.quantization import plain_quantizer
from ..model.sources import resolve_adapter
from ..model.vocabulary import grow_vocabulary
from .rm.padding import separate_padding


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..data.template import Template
    from ..hparams import ModelArguments


logger = get_logger(__name__)

EXACT_TOLERANCE = 1e-5
"""Largest difference of a logit, as a share of the largest logit, where both sides compute in float32."""
ROUNDING_STEPS = 8
"""How many rounding steps of the export's format the cast may move a logit, as a share of the largest one."""
_CHATTING = (
    "from transformers import pipeline",
    "",
    'chat = pipeline("text-generation", model=".")',
    'print(chat([{"role": "user", "content": "Who are you?"}], max_new_tokens=128))',
)
_SCORING = (
    "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
    "",
    'model, tokenizer = AutoModelForSequenceClassification.from_pretrained("."), AutoTokenizer.from_pretrained(".")',
    'chat = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A model."}]',
    'print(model(**tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)).logits)',
)
FOLDER_MODE, FILE_MODE = 0o755, 0o644  # mkdtemp and safetensors write for their owner only

DIALOGUES: tuple[tuple[tuple[str, str], ...], ...] = (
    (("user", "Who are you?"),),
    (("user", "Translate to French: The weather is fine today."),),
    (
        ("user", "\u8bf7\u7528\u4e00\u53e5\u8bdd\u4ecb\u7ecd\u4f60\u81ea\u5df1\u3002"),
    ),  # introduce yourself in one sentence
    (
        ("user", "Name three primary colours."),
        ("assistant", "Red, yellow and blue."),
        ("user", "Now write a Python function that returns them as a list."),
    ),
)
"""What the exported model is compared on: short and long, one turn and several, two scripts, prose and code."""


@dataclass(frozen=True)
class Probe:
    """The prompts of the comparison, as ids."""

    dialogues: tuple[list[dict[str, str]], ...]
    prompts: tuple[list[int], ...]

    def logits(self, model: "PreTrainedModel") -> list[torch.Tensor]:
        """The logits of every prompt, computed in the model's own format."""
        with torch.inference_mode():
            rows = [torch.tensor([prompt], device=model.device) for prompt in self.prompts]
            return [model(input_ids=row, use_cache=False).logits.float().cpu() for row in rows]


@dataclass(frozen=True)
class Merge:
    """A merged model in memory, in float32, and what it answers."""

    model: "PreTrainedModel"
    logits: list[torch.Tensor]
    dtype: torch.dtype
    """The format to write: the one asked for, or with `auto` the one the base is stored in."""
    gap: float | None
    """How far it is from the model with its adapter on; None without an adapter."""


@dataclass(frozen=True)
class Promise:
    """What the folder on disk must answer, after the model in memory is gone."""

    logits: list[torch.Tensor]
    dtype: torch.dtype
    merge_gap: float | None
    rounding_gap: float
    """How far the cast to the export's format moved the logits."""
    is_score: bool = False
    """A reward model: its only logit is a score."""


def export_model(args: Args = None) -> None:
    """Merge, save, read back and compare; a difference is an error and leaves nothing behind."""
    model_args, data_args, finetuning_args, _ = get_infer_args(args, "export")
    target = check_target(model_args.export_dir)
    tokenizer = load_tokenizer(model_args)["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    probe = make_probe(tokenizer, template)
    with written_aside(target) as folder:
        merge = merge_model(tokenizer, probe, model_args, is_reward=finetuning_args.stage == "rm")
        promise = save_export(merge, probe, folder, tokenizer, template, model_args)
        del merge  # room for the copy that is read back
        verify_export(promise, probe, folder, model_args)
        (folder / "README.md").write_text(model_card(model_args, promise), encoding="utf-8")
    logger.info("Exported to %s and verified: read back from disk, it answers as the model it was made from.", target)
    if model_args.export_hub_model_id:
        push(target, model_args)


def check_target(export_dir: str | None) -> Path:
    """Return where the export goes; a folder that already holds something is never written to."""
    if not export_dir:
        raise UserError("export needs export_dir: the folder that receives the model.")
    target = Path(export_dir).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"export_dir {str(target)!r} already holds something: remove it or choose another folder.")
    return target


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """Give a folder beside the target that takes its name at the end, or is removed when something fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield folder
        folder.chmod(FOLDER_MODE)
        for path in folder.iterdir():
            path.chmod(FILE_MODE)
        if target.is_dir():
            target.rmdir()  # empty, as check_target saw
        folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_probe(tokenizer: "PreTrainedTokenizerBase", template: "Template") -> Probe:
    """Write the dialogues with the template."""
    dialogues = tuple([{"role": role, "content": text} for role, text in dialogue] for dialogue in DIALOGUES)
    return Probe(dialogues, tuple(template.encode_prompt(tokenizer, dialogue) for dialogue in dialogues))


def merge_model(
    tokenizer: "PreTrainedTokenizerBase", probe: Probe, model_args: "ModelArguments", *, is_reward: bool = False
) -> Merge:
    """Load the base in float32, take the logits with the adapter on, merge, and compare.

    With `is_reward` the score of a value head file goes with the model.
    """
    folders = [resolve_adapter(name, model_args) for name in model_args.adapter_name_or_path or ()]
    refuse_merge(folders)
    config = load_config(model_args)
    stretch_positions(config, model_args)
    head = exported_head(head_of(config, folders), model_args, is_reward=is_reward)
    dtype = stored_dtype(config) if model_args.infer_dtype == "auto" else NAMED_DTYPES[model_args.infer_dtype]
    plain = plain_quantizer(config, model_args.model_name_or_path)
    model = load_weights(
        config,
        model_args,
        torch.float32,
        placed=model_args.export_device == "auto",
        head=head,
        quantizer=plain,
    ).eval()
    if head == "score":
        model = take_score(model, model_args)
    grow_vocabulary(model, tokenizer, model_args, read_changes(model_args).num_rows)
    check_vocabulary(tokenizer, model)
    if not folders:
        logger.info("No adapter is named: the model itself is saved again.")
        return Merge(model, probe.logits(model), dtype, None)

    model = merge_adapters(model, folders[:-1], torch.float32)
    adapted: Any = load_adapter(model, folders[-1]).eval()
    expected = probe.logits(adapted)
    merged = merge_adapter(adapted, torch.float32, compare_in=dtype)
    if not merged.num_changed:
        raise UserError(
            f"The adapter {folders[-1]} changes nothing: after merging, every weight is the base's in {SHORT[dtype]}. "
            "It was not trained, or its changes are smaller than that format can hold (then try infer_dtype: float32)."
        )
    logger.info("Merged %s; %s of %s layers changed.", folders[-1], merged.num_changed, merged.num_layers)
    logits = probe.logits(merged.model.eval())
    gap = require_equal(expected, logits, EXACT_TOLERANCE, "the merged model and the model with its adapter")
    return Merge(merged.model, logits, dtype, gap)


def save_export(
    merge: Merge,
    probe: Probe,
    folder: Path,
    tokenizer: "PreTrainedTokenizerBase",
    template: "Template",
    model_args: "ModelArguments",
) -> Promise:
    """Cast and write weights, config, generation config and tokenizer; return what the folder must answer."""
    model: Any = merge.model
    cast_parameters(model, merge.dtype)
    model.config.use_cache = True
    stops = template.get_stop_token_ids(tokenizer)
    if model.can_generate():
        model.generation_config.eos_token_id = stops[0] if len(stops) == 1 else stops
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    else:
        separate_padding(tokenizer, model, stops)  # a reward model
    model.save_pretrained(folder, max_shard_size=f"{model_args.export_size}GB")
    tokenizer.padding_side = "left" if model.can_generate() else "right"  # prompts of a batch end where it writes
    tokenizer.save_pretrained(folder)
    if isinstance(template, SlotTemplate):
        (folder / "Modelfile").write_text(template.get_ollama_modelfile(tokenizer), encoding="utf-8")

    cast_parameters(model, torch.float32)
    rounded = probe.logits(model)
    tolerance = EXACT_TOLERANCE if merge.dtype == torch.float32 else ROUNDING_STEPS * torch.finfo(merge.dtype).eps
    gap = require_equal(
        merge.logits, rounded, tolerance, f"the model before and after rounding to {SHORT[merge.dtype]}"
    )
    return Promise(rounded, merge.dtype, merge.gap, gap, not model.can_generate())


def cast_parameters(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights only: `model.to` would round the rotary frequencies too, which every load computes anew."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def verify_export(promise: Promise, probe: Probe, folder: Path, model_args: "ModelArguments") -> None:
    """Read the folder as anybody would and compare prompts and logits with what was promised."""
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    for dialogue, prompt in zip(probe.dialogues, probe.prompts, strict=True):
        found = tokenizer.apply_chat_template(dialogue, add_generation_prompt=True, return_dict=False)
        if found != prompt:
            raise UserError(
                "The export was removed: its own chat template writes another prompt than the template of this run, "
                f"{tokenizer.decode(found)!r} instead of {tokenizer.decode(prompt)!r}."
            )
    written = replace(model_args, model_name_or_path=str(folder), adapter_name_or_path=None, rope_scaling=None)
    config = load_config(written)
    placed = model_args.export_device == "auto"
    copy = load_weights(config, written, torch.float32, placed=placed, head=head_of(config, ()))
    require_equal(promise.logits, probe.logits(copy.eval()), EXACT_TOLERANCE, "the exported folder and the model")


def require_equal(
    expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor], tolerance: float, sides: str
) -> float:
    """Return the largest difference of two lists of logits as a share of the largest one; above tolerance it fails."""
    gaps = [float((one - two).abs().max() / one.abs().max()) for one, two in zip(expected, found, strict=True)]
    gap = math.inf if any(math.isnan(gap) for gap in gaps) else max(gaps)
    if gap > tolerance:
        raise UserError(
            f"The export was removed: {sides} answer differently (logits differ by {gap:.1e} of the largest one; "
            f"{tolerance:.1e} is allowed)."
        )
    return gap


def model_card(model_args: "ModelArguments", promise: Promise) -> str:
    """A short README: what was merged, what was checked, how to run it."""
    name = model_args.model_name_or_path
    is_hub_id = "://" not in name and not Path(name).expanduser().exists()
    task = "text-classification" if promise.is_score else "text-generation"
    head = ["---", "library_name: transformers", f"pipeline_tag: {task}", "tags: [llamafactory]"]
    head += [f"base_model: {name}", "---"] if is_hub_id else ["---"]
    adapters = [Path(adapter).name for adapter in model_args.adapter_name_or_path or ()]
    made = f"merged in: {', '.join(adapters)}" if adapters else "saved again without an adapter"
    base = name if is_hub_id or "://" in name else Path(name).name
    merge_gap = "" if promise.merge_gap is None else f" Merged against unmerged: {promise.merge_gap:.1e}."
    return "\n".join(
        [
            *head,
            "",
            f"# {base}: exported model",
            "",
            f"Base: {base}; {made}. Weights: {SHORT[promise.dtype]}.",
            "",
            f"Checked on {len(DIALOGUES)} dialogues after reading it back (largest difference of a logit, as a share "
            f"of the largest).{merge_gap} Rounding to {SHORT[promise.dtype]}: {promise.rounding_gap:.1e}.",
            "",
            "```python",
            *(_SCORING if promise.is_score else _CHATTING),
            "```",
            "",
        ]
    )


def push(folder: Path, model_args: "ModelArguments") -> None:
    """Upload the finished export."""
    from huggingface_hub import HfApi

    with reading_model(str(model_args.export_hub_model_id)):
        api = HfApi(token=model_args.hf_hub_token)
        address = api.create_repo(str(model_args.export_hub_model_id), exist_ok=True)
        api.upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message="Export")
    logger.info("Uploaded to %s.", address)
