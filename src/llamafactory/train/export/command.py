"""The `export` command: one plain model folder out of a base and its adapters, checked before it appears.

Merging is done in float32 and cast once at the end. The folder is written aside, read back from disk, and compared on
real prompts with the model it was made from; only then does it get its name. So whatever stands at `export_dir` works.
"""

from ...data.template import get_template_and_fix_tokenizer
from ...extras.logging import get_logger
from ...hparams.parser import Args, get_infer_args
from ...model.loader import load_tokenizer
from .card import model_card
from .folder import check_target, written_aside
from .gguf_file import add_gguf, check_gguf
from .hub import push
from .merging import merge_model
from .probe import make_probe
from .quantized import find_quantizer, quantize_export
from .saving import save_export, save_processor, verify_export


logger = get_logger(__name__)


def export_model(args: Args = None) -> None:
    """Merge, save, read back and compare; a difference is an error and leaves nothing behind."""
    model_args, data_args, finetuning_args, _ = get_infer_args(args, "export")
    target = check_target(model_args.export_dir)
    check_gguf(model_args.export_gguf)
    quantizer = find_quantizer(model_args)
    module = load_tokenizer(model_args)
    tokenizer = module["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    probe = make_probe(tokenizer, template)
    notes: list[str] = []
    with written_aside(target) as folder:
        merge = merge_model(tokenizer, probe, model_args, is_reward=finetuning_args.stage == "rm")
        promise = save_export(merge, probe, folder, tokenizer, template, model_args)
        save_processor(module["processor"], folder, model_args)
        del merge  # room for the copy that is read back
        verify_export(promise, probe, folder, model_args)
        if model_args.export_gguf:
            notes.append(add_gguf(folder, target.name, promise, probe, tokenizer, model_args))
        if quantizer is not None:
            notes.append(quantize_export(quantizer, folder, promise, probe, tokenizer, model_args))
        (folder / "README.md").write_text(model_card(model_args, promise, notes), encoding="utf-8")
    logger.info("Exported to %s and verified: read back from disk, it answers as the model it was made from.", target)
    if model_args.export_hub_model_id:
        push(target, model_args)
