"""Optional packages: is one there, and one sentence that says what to install when it is not."""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from .errors import UserError


@functools.cache
def is_available(module: str) -> bool:
    """Tell whether a module can be found, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):
        return False


def require(module: str, extra: str | None, purpose: str) -> ModuleType:
    """Import an optional module, or say in one sentence how to get it.

    `extra` is the name in pyproject.toml; None for a package that cannot share our environment or is not on PyPI.
    """
    if not is_available(module):
        way = f'run `pip install "llamafactory[{extra}]"`' if extra else "install it as its own documentation says"
        raise UserError(f"{purpose} needs the package {module!r}, which is not installed: {way}.")
    return importlib.import_module(module)


def package_version(distribution: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _probe(module: str) -> Callable[[], bool]:
    return functools.partial(is_available, module)


is_apollo_available = _probe("apollo_torch")
is_bitsandbytes_available = _probe("bitsandbytes")
is_deepspeed_available = _probe("deepspeed")
is_fastapi_available = _probe("fastapi")
is_flash_attn_available = _probe("flash_attn")
is_galore_available = _probe("galore_torch")
is_gradio_available = _probe("gradio")
is_jieba_available = _probe("jieba")
is_liger_kernel_available = _probe("liger_kernel")
is_matplotlib_available = _probe("matplotlib")
is_modelscope_available = _probe("modelscope")
is_pillow_available = _probe("PIL")
is_pyav_available = _probe("av")
is_ray_available = _probe("ray")
is_requests_available = _probe("requests")
is_rouge_available = _probe("rouge_score")
is_sacrebleu_available = _probe("sacrebleu")
is_safetensors_available = _probe("safetensors")
is_sglang_available = _probe("sglang")
is_starlette_available = _probe("sse_starlette")
is_torch_available = _probe("torch")
is_uvicorn_available = _probe("uvicorn")
is_vllm_available = _probe("vllm")
