"""Compiles the C++ kernels on first use and loads them."""

import ctypes
import functools
import hashlib
import os
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cpu_grpo.engine.kernels.toolchain import toolchain
from cpu_grpo.files import cache_directory, sha256
from cpu_grpo.hardware import cpu_flags

SOURCES = [
    Path(__file__).parent / name
    for name in (
        "attention.cpp",
        "decode.cpp",
        "draw.cpp",
        "int8.cpp",
        "lean.cpp",
        "passes.cpp",
        "products.cpp",
        "rows.cpp",
    )
]
HEADERS = [Path(__file__).parent / name for name in ("dot.h", "numbers.h", "vectors.h")]
POINTER, INT, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
Signatures = dict[str, list[Any]]  # what kernels take
SIGNATURES: Signatures = {
    "norm": [POINTER, POINTER, POINTER, FLOAT, POINTER, POINTER, INT, INT],
    "norm_backward": [POINTER] * 6 + [INT] * 3,
    "swiglu": [POINTER, POINTER, INT, INT],
    "swiglu_backward": [POINTER, POINTER, POINTER, INT, INT],
    "rotary": [POINTER, INT, POINTER, POINTER, FLOAT, POINTER, INT, INT, INT],
    "causal_softmax": [POINTER, POINTER, FLOAT, INT, INT, INT],
    "exps": [POINTER, POINTER, POINTER, FLOAT, INT, INT],
    "softmax_again": [POINTER, POINTER, FLOAT, INT, INT],
    "causal_softmax_backward": [POINTER, POINTER, POINTER, FLOAT, INT, INT, INT],
    "token_scores": [POINTER, POINTER, FLOAT, POINTER, POINTER, INT, INT],
    "score_gradient": [POINTER] * 4 + [FLOAT] + [INT] * 2,
    "draw": [POINTER, POINTER, FLOAT, POINTER, POINTER, INT, INT],
    "squares": [POINTER] * 3 + [INT] * 2,
    "weighted_squares": [POINTER] * 3 + [INT] * 2,
    "descend": [POINTER] * 4 + [FLOAT] + [INT] * 3,
    "store": [POINTER] * 4 + [INT] * 4,
    "attend": [POINTER] * 3 + [FLOAT] + [POINTER] * 2 + [FLOAT] + [POINTER] * 6 + [INT] + [POINTER] * 3 + [INT] * 5,
}
DECODE = [POINTER, INT, FLOAT, POINTER, POINTER, INT, INT, POINTER, POINTER, FLOAT, POINTER, POINTER, INT]
DECODE += [POINTER] * 6 + [INT] * 5
LAID_OUT_SIGNATURES: Signatures = {
    "lay_out": [POINTER, POINTER] + [INT] * 4,
    "narrow_product": [POINTER] * 4 + [INT] * 3,
    "decode_layers": DECODE,
}
INT8_SIGNATURES: Signatures = {"fine_product": LAID_OUT_SIGNATURES["narrow_product"]}
IN_PLACE_SIGNATURES: Signatures = {
    "row_product": [POINTER] * 5 + [INT] * 4,
    "decode_layers_in_place": DECODE,
}
SUFFIXES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.int8: "int8"}
# What is computed in, and what weights are stored in.
PRODUCTS = [(torch.float32, stored) for stored in SUFFIXES] + [
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.int8),
]


Kernel = Callable[..., None]


class Native:
    """The compiled kernels for a dtype, and one that weights are stored in, as functions of tensors, numbers and None.

    `panel` is the number of outputs that `narrow_product` computes together; 0 if this CPU or dtype has none. What each
    kernel takes stands at its C++ function. Of weights in int8 there are fine products, and none where they lie.
    """

    norm: Kernel
    norm_backward: Kernel
    swiglu: Kernel
    swiglu_backward: Kernel
    rotary: Kernel
    causal_softmax: Kernel
    exps: Kernel
    softmax_again: Kernel
    causal_softmax_backward: Kernel
    token_scores: Kernel
    score_gradient: Kernel
    draw: Kernel
    squares: Kernel
    weighted_squares: Kernel
    descend: Kernel
    store: Kernel
    attend: Kernel
    lay_out: Kernel
    narrow_product: Kernel
    fine_product: Kernel
    row_product: Kernel
    decode_layers: Kernel
    decode_layers_in_place: Kernel

    def __init__(self, library: ctypes.CDLL, suffix: str, stored: str) -> None:
        self.panel = getattr(library, f"narrow_panel_{suffix}_{stored}")()
        for name, (exported, signature) in exports(suffix, stored).items():
            function = getattr(library, exported)
            function.argtypes, function.restype = signature, None
            setattr(self, name, functools.partial(_call, function))


def exports(suffix: str, stored: str) -> dict[str, tuple[str, list[Any]]]:
    """What a library calls each kernel for these SUFFIXES, and what it takes, by its name in `Native`."""
    of_products = LAID_OUT_SIGNATURES | (INT8_SIGNATURES if stored == SUFFIXES[torch.int8] else IN_PLACE_SIGNATURES)
    found = {name: (f"{name}_{suffix}", signature) for name, signature in SIGNATURES.items()}
    return found | {name: (f"{name}_{suffix}_{stored}", signature) for name, signature in of_products.items()}


def native(dtype: torch.dtype, stored: torch.dtype | None = None) -> Native | None:
    """The kernels for tensors of `dtype`, and weights of it or of `stored`; None if there are none on this machine."""
    return _all().get((dtype, stored or dtype))


@functools.cache
def _all() -> dict[tuple[torch.dtype, torch.dtype], Native]:
    if os.environ.get("CPU_GRPO_KERNELS") == "0":
        return {}
    try:
        library = ctypes.CDLL(str(_compiled()))
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:  # RuntimeError: there is no home directory
        said = (getattr(error, "stderr", None) or "").strip() or str(error)
        warnings.warn(f"Slower torch code replaces the compiled kernels: {said.splitlines()[-1]}", stacklevel=2)
        return {}
    return {pair: Native(library, *(SUFFIXES[dtype] for dtype in pair)) for pair in PRODUCTS}


def _compiled() -> Path:
    """The shared library, made if this machine and version have none yet."""
    tools = toolchain()
    # What is native depends on what the CPU can do, and a cache directory may be shared by different machines.
    told = (tools.compiler, *tools.options, *tools.libraries, *cpu_flags(), torch.__version__)
    parts = (*(path.read_text(encoding="utf-8") for path in (*SOURCES, *HEADERS)), *told)
    key = f"kernels-{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:16]}"
    directory = cache_directory()
    if found := next((path for path in directory.glob(f"{key}-*.so") if path == _named(directory, key, path)), None):
        return found
    directory.mkdir(parents=True, exist_ok=True)
    unfinished = directory / f"{key}.{os.getpid()}"
    try:
        subprocess.run(tools.command(SOURCES, unfinished), check=True, capture_output=True, text=True)
        return unfinished.replace(_named(directory, key, unfinished))
    finally:
        unfinished.unlink(missing_ok=True)


def _named(directory: Path, key: str, library: Path) -> Path:
    """A library's name has a hash of its content, so that one which was damaged is not taken: loading it can crash."""
    return directory / f"{key}-{sha256(library)[:16]}.so"


def _call(function: Kernel, *arguments: object) -> None:
    function(*(a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments))
