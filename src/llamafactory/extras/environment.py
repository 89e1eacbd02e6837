"""What a bug report needs to know about this machine; `llamafactory-cli env` prints it, a run saves it."""

import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .device import device_facts
from .env import list_variables
from .errors import UserError
from .packages import is_torch_available, package_version
from .version import VERSION


ALWAYS = ("torch", "transformers", "datasets", "accelerate", "peft", "tokenizers", "safetensors", "pydantic")
IF_INSTALLED = (
    "trl",
    "deepspeed",
    "bitsandbytes",
    "flash-attn",
    "liger-kernel",
    "vllm",
    "sglang",
    "ray",
    "modelscope",
)


def environment_report() -> dict[str, str]:
    """Return versions, platform and devices; nothing in it is secret."""
    report = {"llamafactory": VERSION, "python": platform.python_version(), "platform": platform.platform()}
    report.update({name: package_version(name) or "not installed" for name in ALWAYS})
    report.update({name: version for name in IF_INSTALLED if (version := package_version(name))})
    if is_torch_available():
        report.update(_device_report())
    commit = _git_commit(Path(__file__).resolve().parents[3])
    if commit:
        report["git commit"] = commit
    return report


def show_environment(args: Sequence[str] = ()) -> None:
    """Print the report, or with --vars the environment variables that matter."""
    unknown = [word for word in args if word != "--vars"]
    if unknown:
        raise UserError(f"`env` does not know {unknown[0]!r}; it takes --vars or nothing.")
    if "--vars" in args:
        lines = [line for row in list_variables() for line in _describe(row.name, row.value, row.is_set, row.help)]
        sys.stdout.write("\n".join(lines) + "\n")
        return

    report = environment_report()
    width = max(len(name) for name in report)
    sys.stdout.write("".join(f"{name:<{width}}  {value}\n" for name, value in report.items()))


def _describe(name: str, value: str, is_set: bool, text: str) -> tuple[str, str]:
    mark = "set" if is_set else "default"
    return f"{name}={value}  ({mark})", f"    {text}"


def _device_report() -> dict[str, str]:
    import torch

    facts = device_facts()
    report = {
        "device": f"{facts.count} x {facts.name}" if facts.kind != "cpu" else "CPU",
        "bfloat16": "fast" if facts.bf16 else "slow",
        "threads": str(torch.get_num_threads()),
    }
    if facts.kind == "cuda":
        free, total = torch.cuda.mem_get_info(0)
        report["CUDA"] = str(torch.version.cuda)
        report["device memory"] = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    return report


def _git_commit(root: Path) -> str | None:
    """Return the commit of a checkout; None for an installed package or without git."""
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None
    result = subprocess.run(
        [git, "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False, timeout=10
    )
    return result.stdout.strip() or None
