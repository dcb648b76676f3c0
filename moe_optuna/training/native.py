"""`native.c`, compiled where it is first needed, behind the functions of `moe_optuna.training.plain`.

The compiler is the machine's own (``$CC``, or ``cc``); what it makes is cached under `cache_folder` by a hash of source
and target. Without a compiler, without an `sgemm` in torch's library, or with ``MOE_OPTUNA_NATIVE=0`` there is no
library, `takes` says so, and `plain` runs.

Shapes as in `moe_optuna.training.plain`.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe_optuna.training._corpus import cache_folder
from moe_optuna.training.kernels import Saved
from moe_optuna.training.router import RoutingRule

__all__ = [
    "attention_backward",
    "attention_forward",
    "entropy_backward",
    "entropy_forward",
    "experts_backward",
    "experts_forward",
    "library",
    "rms_norm_backward",
    "rms_norm_forward",
    "route_backward",
    "route_forward",
    "swiglu_backward",
    "swiglu_forward",
    "takes",
]

_SOURCE = Path(__file__).with_name("native.c")
_FLAGS = ("-std=gnu11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
_TARGETS = (
    # The best that the compiler knows: all of the machine's instructions, threads; then less.
    ("-march=native", "-mprefer-vector-width=512", "-fopenmp"),
    ("-march=native", "-fopenmp"),
    ("-mcpu=native", "-fopenmp-simd"),
)


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled functions, or ``None`` where this machine cannot have them."""
    if os.environ.get("MOE_OPTUNA_NATIVE") == "0":
        return None
    try:
        product = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).sgemm_
        loaded = _built()
    except (OSError, AttributeError, subprocess.SubprocessError):
        return None
    if loaded is None:
        return None
    for name, arguments in re.findall(r"^void (\w+)\((.*?)\) {", _SOURCE.read_text(), re.MULTILINE | re.DOTALL):
        function = getattr(loaded, name)
        function.argtypes = [_kind(argument) for argument in arguments.split(",")]
        function.restype = None
    loaded.use_gemm(ctypes.cast(product, ctypes.c_void_p))
    return loaded


def _kind(argument: str) -> type[Any]:
    """The type of an argument, as the source declares it."""
    return ctypes.c_void_p if "*" in argument else ctypes.c_float if "float" in argument else ctypes.c_int


def _built() -> ctypes.CDLL | None:
    """The library of the first target that the compiler can do, from the cache where it has been made before."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None
    for target in _TARGETS:
        try:  # what the compiler defines tells its version and every instruction set that the machine has
            defined = subprocess.run(
                [compiler, *target, "-dM", "-E", "-x", "c", os.devnull], capture_output=True, check=True, timeout=60
            ).stdout
        except subprocess.CalledProcessError:
            continue
        digest = hashlib.sha256(_SOURCE.read_bytes() + repr((_FLAGS, target)).encode() + defined).hexdigest()[:32]
        file = cache_folder() / "native" / f"{digest}.so"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=file.parent) as folder:
                unfinished = Path(folder) / file.name
                command = [compiler, *_FLAGS, *target, "-o", str(unfinished), str(_SOURCE), "-lm"]
                try:
                    subprocess.run(command, capture_output=True, check=True, timeout=120)
                except subprocess.CalledProcessError:
                    continue
                unfinished.replace(file)
        return ctypes.CDLL(str(file))
    return None


def takes(x: Tensor) -> bool:
    """Whether these functions take a model's activations: float32 on a CPU, and there is a library."""
    return x.device.type == "cpu" and x.dtype is torch.float32 and not x.is_meta and library() is not None


def _call(name: str, *arguments: Any) -> None:
    function, count = _function(name)
    values = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    assert len(values) + 1 == count, name  # ctypes lets surplus arguments pass
    function(*values, torch.get_num_threads())


@cache
def _function(name: str) -> tuple[Any, int]:
    """A function of the library and the number of its arguments."""
    function = getattr(library(), name)
    return function, len(function.argtypes)


def _ints(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.int32)


# ------------------------------------------------------------------------------------------ norm and SwiGLU


def rms_norm_forward(x_TD: Tensor, gain_D: Tensor) -> tuple[Tensor, Saved]:
    y_TD, inverse_T = torch.empty_like(x_TD), x_TD.new_empty(len(x_TD))
    _call("rms_forward", *x_TD.shape, x_TD, gain_D, y_TD, inverse_T)
    return y_TD, (x_TD, gain_D, inverse_T)


def rms_norm_backward(saved: Saved, grad_TD: Tensor, rest_TD: Tensor) -> tuple[Tensor, Tensor]:
    x_TD, gain_D, inverse_T = saved
    grad_x_TD, grad_gain_D = torch.empty_like(x_TD), torch.empty_like(gain_D)
    _call("rms_backward", *x_TD.shape, x_TD, gain_D, inverse_T, grad_TD, rest_TD, grad_x_TD, grad_gain_D)
    return grad_x_TD, grad_gain_D


def swiglu_forward(gate_up: Tensor) -> tuple[Tensor, Saved]:
    T, F = len(gate_up), gate_up.shape[1] // 2
    hidden_TF = gate_up.new_empty(T, F)
    _call("swiglu_forward", T, F, gate_up, hidden_TF)
    return hidden_TF, (gate_up,)


def swiglu_backward(saved: Saved, grad_TF: Tensor) -> Tensor:
    (gate_up,) = saved
    grad_gate_up = torch.empty_like(gate_up)
    _call("swiglu_backward", *grad_TF.shape, gate_up, grad_TF, grad_gate_up)
    return grad_gate_up


# ------------------------------------------------------------------------------------------------ attention


def attention_forward(
    qkv: Tensor, gains: tuple[Tensor, Tensor] | None, table: Tensor, shape: tuple[int, int, int, int], train: bool
) -> tuple[Tensor, Saved, Any]:
    (B, H, G, C), T = shape, len(qkv)
    qk, inverse = qkv.new_empty(T, (H + G) * C), qkv.new_empty(T, H + G)
    y_TH, lse = qkv.new_empty(T, H * C), qkv.new_empty(B, H, T // B)
    _call("attention_forward", B, T // B, H, G, C, qkv, *(gains or (None, None)), table, qk, inverse, y_TH, lse)
    return y_TH, (qkv, table, qk, inverse, y_TH, lse, *(gains or ())), None


def attention_backward(
    saved: Saved, graph: Any, grad_TH: Tensor, shape: tuple[int, int, int, int]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    qkv, table, qk, inverse, y_TH, lse, *gains = saved
    (B, H, G, C), T = shape, len(qkv)
    grad_qkv = torch.empty_like(qkv)
    known: list[Any] = gains or [None, None]
    grads: list[Any] = [torch.empty_like(gain) for gain in gains] or [None, None]
    _call(
        "attention_backward", B, T // B, H, G, C, qkv, *known, table, qk, inverse, y_TH, lse, grad_TH, grad_qkv, *grads
    )
    return grad_qkv, grads[0], grads[1]


# -------------------------------------------------------------------------------------- routing and experts


def route_forward(
    rule: RoutingRule, logits_TE: Tensor, bias_E: Tensor, n_sequences: int
) -> tuple[Tensor, Tensor, Tensor, Saved, Saved]:
    (T, E), K, B = logits_TE.shape, rule.top_k, n_sequences
    score_TE, expert_TK, weight_TK = torch.empty_like(logits_TE), _ints(T, K), logits_TE.new_empty(T, K)
    sum_T, total_T, lse_T = logits_TE.new_empty(3, T).unbind(0)
    weigh_BE, count_E, loss = logits_TE.new_empty(B, E), logits_TE.new_empty(E), logits_TE.new_empty(())
    visit_R, place_TK, end_E = _ints(T * K), _ints(T, K), _ints(E)
    saved = (logits_TE, score_TE, expert_TK, weight_TK, sum_T, total_T, lse_T, weigh_BE)
    _call(
        "route_forward", T, E, K, B, rule.scores == "softmax", rule.balance_loss, rule.z_loss,
        logits_TE, bias_E, *saved[1:], count_E, loss, visit_R, place_TK, end_E,
    )  # fmt: skip
    return weight_TK, loss, count_E, (visit_R, place_TK, end_E), saved


def route_backward(rule: RoutingRule, saved: Saved, grad_weight_TK: Tensor, grad_loss: Tensor) -> Tensor:
    logits_TE, weigh_BE = saved[0], saved[-1]
    (T, E), B = logits_TE.shape, len(weigh_BE)
    grad_TE = torch.empty_like(logits_TE)
    _call(
        "route_backward", T, E, rule.top_k, B, rule.scores == "softmax", rule.z_loss,
        *saved, grad_weight_TK, grad_loss, grad_TE,
    )  # fmt: skip
    return grad_TE


def experts_forward(
    x_TD: Tensor, weight_TK: Tensor, places: Saved, gate_up_EGD: Tensor, down_EDF: Tensor, rest_TD: Tensor
) -> tuple[Tensor, Saved]:
    (T, K), (E, D, F) = weight_TK.shape, down_EDF.shape
    gate_up_RG, y_TD = x_TD.new_empty(T * K, 2 * F), torch.empty_like(x_TD)
    _call("experts_forward", T, K, E, D, F, x_TD, gate_up_EGD, down_EDF, weight_TK, *places, rest_TD, gate_up_RG, y_TD)
    return y_TD, (x_TD, weight_TK, gate_up_RG)


def experts_backward(
    saved: Saved, places: Saved, gate_up_EGD: Tensor, down_EDF: Tensor, grad_TD: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x_TD, weight_TK, gate_up_RG = saved
    (T, K), (E, D, F) = weight_TK.shape, down_EDF.shape
    grads = tuple(torch.empty_like(t) for t in (x_TD, gate_up_EGD, down_EDF, weight_TK))
    _call(
        "experts_backward", T, K, E, D, F,
        x_TD, gate_up_EGD, down_EDF, weight_TK, *places, gate_up_RG, grad_TD, *grads,
    )  # fmt: skip
    return grads  # type: ignore[return-value]


# -------------------------------------------------------------------------------------------- cross-entropy


def entropy_forward(logits_TV: Tensor, target_T: Tensor) -> tuple[Tensor, Saved]:
    lse_T, loss = logits_TV.new_empty(len(logits_TV)), logits_TV.new_empty(())
    _call("entropy_forward", *logits_TV.shape, logits_TV, target_T, lse_T, loss)
    return loss, (logits_TV, target_T, lse_T)


def entropy_backward(saved: Saved, grad_loss: Tensor) -> Tensor:
    logits_TV, target_T, lse_T = saved
    grad_TV = torch.empty_like(logits_TV)
    _call("entropy_backward", *logits_TV.shape, logits_TV, target_T, lse_T, grad_loss, grad_TV)
    return grad_TV
