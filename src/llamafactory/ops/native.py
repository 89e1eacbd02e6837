"""The C++ files beside this one, built once per machine by its own compiler and called directly.

Eager PyTorch passes over memory once per operation, in float32 and through fresh pages: for bf16 on a CPU that costs
up to forty times what one pass does. torch.compile makes the same code, for some 20 CPU-seconds of building and 4 in
every later process; these take one or two, once. Where there is no compiler `native_kernels` returns None and the
eager forms in kernels.py serve; attention_native.py calls attention.cpp.
"""

import ctypes
import functools
import hashlib
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..extras.env import read_env
from ..extras.logging import get_logger


logger = get_logger(__name__)

FOLDER = Path(__file__).parent
COMPILERS = ("g++", "clang++", "c++")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-std=c++17", "-shared", "-fPIC")
BUILD_SECONDS = 120
SUFFIXES = {torch.bfloat16: "bf16", torch.float32: "f32"}
ACTIVATIONS = {"silu": 0, "gelu_tanh": 1}


@functools.cache
def has_tiles() -> bool:
    """Whether this processor multiplies tiles of bfloat16 (AMX), which makes a library several times as fast."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


@dataclass(frozen=True)
class NativeKernels:
    """The library's functions for contiguous CPU tensors of one format; what they compute stands in kernels.py."""

    library: ctypes.CDLL

    def rms_norm(self, x_ND: Tensor, weight_D: Tensor, eps: float, shift: float) -> tuple[Tensor, Tensor]:
        y_ND = torch.empty_like(x_ND)
        rstd_N = torch.empty(x_ND.shape[0], dtype=torch.float32)
        sizes = ctypes.c_int64(x_ND.shape[0]), ctypes.c_int64(x_ND.shape[1])
        rest = ctypes.c_float(eps), ctypes.c_float(shift)
        self._call("rms_forward", (x_ND, weight_D, y_ND, rstd_N), *sizes, *rest)
        return y_ND, rstd_N

    def rms_norm_backward(
        self, dy_ND: Tensor, x_ND: Tensor, weight_D: Tensor, rstd_N: Tensor, shift: float, needs_dweight: bool
    ) -> tuple[Tensor, Tensor | None]:
        dx_ND = torch.empty_like(x_ND)
        dweight_D = torch.zeros(weight_D.shape, dtype=torch.float32) if needs_dweight else None
        sizes = ctypes.c_int64(x_ND.shape[0]), ctypes.c_int64(x_ND.shape[1])
        tensors = dy_ND.contiguous(), x_ND, weight_D, rstd_N, dx_ND, dweight_D
        self._call("rms_backward", tensors, *sizes, ctypes.c_float(shift))
        return dx_ND, dweight_D

    def gated(self, gate_NF: Tensor, up_NF: Tensor, activation: str) -> Tensor:
        out_NF = torch.empty_like(gate_NF)
        size, kind = ctypes.c_int64(gate_NF.numel()), ctypes.c_int(ACTIVATIONS[activation])
        self._call("gated_forward", (gate_NF, up_NF, out_NF), size, kind)
        return out_NF

    def gated_backward(
        self, gate_NF: Tensor, up_NF: Tensor, dout_NF: Tensor, activation: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        out_NF, dgate_NF, dup_NF = (torch.empty_like(gate_NF) for _ in range(3))
        size, kind = ctypes.c_int64(gate_NF.numel()), ctypes.c_int(ACTIVATIONS[activation])
        tensors = gate_NF, up_NF, dout_NF.contiguous(), out_NF, dgate_NF, dup_NF
        self._call("gated_backward", tensors, size, kind)
        return out_NF, dgate_NF, dup_NF

    def rotate(self, x_BHTE: Tensor, cos_BTE: Tensor, sin_BTE: Tensor, inverse: bool) -> Tensor:
        B, H, T, E = x_BHTE.shape
        if x_BHTE.stride(3) != 1:
            x_BHTE = x_BHTE.contiguous()
        y_BHTE = new_rotated(x_BHTE, inverse)
        angles = cos_BTE.stride(0) if cos_BTE.shape[0] > 1 else 0, cos_BTE.stride(1)
        strides = *x_BHTE.stride()[:3], *y_BHTE.stride()[:3], *angles
        sizes = (ctypes.c_int64 * 4)(B, H, T, E), (ctypes.c_int64 * 8)(*strides)
        name = f"rotate_{SUFFIXES[x_BHTE.dtype]}_{SUFFIXES[cos_BTE.dtype]}"
        self._run(name, (x_BHTE, cos_BTE, sin_BTE, y_BHTE), *sizes, ctypes.c_int(inverse))
        return y_BHTE

    def _call(self, name: str, tensors: tuple[Tensor, *tuple[Tensor | None, ...]], *rest: object) -> None:
        self._run(f"{name}_{SUFFIXES[tensors[0].dtype]}", tensors, *rest)

    def _run(self, name: str, tensors: tuple[Tensor | None, ...], *rest: object) -> None:
        places = (ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors)
        self.library[name](*places, *rest)


def new_rotated(x_BHTE: Tensor, inverse: bool) -> Tensor:
    """Make room for a rotated tensor: heads apart, as attention reads them, or (a gradient) tokens apart."""
    if not inverse:
        return torch.empty(x_BHTE.shape, dtype=x_BHTE.dtype, device=x_BHTE.device)
    B, H, T, E = x_BHTE.shape
    return torch.empty((B, T, H, E), dtype=x_BHTE.dtype, device=x_BHTE.device).transpose(1, 2)


@functools.cache
def native_kernels() -> NativeKernels | None:
    """Return the functions of elementwise.cpp; None without a working compiler."""
    library = native_library("elementwise")
    return None if library is None else NativeKernels(library)


@functools.cache
def native_library(name: str) -> ctypes.CDLL | None:
    """Load one of the libraries, building it first where this machine has none; None without a working compiler."""
    compiler = _find_compiler()
    if compiler is None:
        return None
    path = read_env().cache_dir / "native" / f"{name}-{_fingerprint(name, compiler)}.so"
    try:
        if not path.is_file():
            _build(compiler, name, path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        text = getattr(error, "stderr", None) or str(error)
        logger.info("The C++ kernels %s could not be built, so PyTorch serves: %s", name, text.strip()[:300])
        return None


@functools.cache
def _find_compiler() -> str | None:
    compiler = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if compiler is None:
        logger.info("No C++ compiler was found: norms, activations, rotations and attention run as eager PyTorch.")
    return compiler


def _build(compiler: str, name: str, path: Path) -> None:
    """Compile into a file of this process and rename it, so that ranks starting together do no harm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        command = [compiler, *FLAGS, str(FOLDER / f"{name}.cpp"), "-o", str(built)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=BUILD_SECONDS)
        built.replace(path)


def _fingerprint(name: str, compiler: str) -> str:
    """Tell builds apart that must not be mixed: another source, compiler or processor (a shared home has several)."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    traits = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    stamp = Path(compiler).stat()
    sources = [path.read_text(encoding="utf-8") for path in (FOLDER / f"{name}.cpp", *sorted(FOLDER.glob("*.h")))]
    parts = [*sources, *FLAGS, compiler, f"{stamp.st_size} {stamp.st_mtime_ns}"]
    text = "\n".join([*parts, platform.machine(), *traits])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
