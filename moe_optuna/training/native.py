"""A model's losses, all its gradients and the optimizer's step in one call of C each: `native.c`, compiled where it is
first needed.

A step of a small model takes a millisecond of arithmetic; sublayer by sublayer torch and Python take several more.

The compiler is the machine's own (``$CC``, or ``cc``); what it makes is cached under `cache_folder` by a hash of source
and target. Without a compiler or an `sgemm` (`_blas.py`), with a warning, or with ``MOE_OPTUNA_NATIVE=0`` there is no
library, `takes` says so, and torch's operations run.

Shapes: B sequences, S context, T = B S tokens, H query heads, G key and value heads, C head features.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import Parameter

from moe_optuna.errors import InputError
from moe_optuna.files import remove_unfinished
from moe_optuna.training._blas import sgemm
from moe_optuna.training._corpus import cache_folder
from moe_optuna.training.kernels import apply

__all__ = [
    "PER_LAYER", "Group", "Shape", "Step", "backward", "balance", "forward", "groups", "library", "losses", "pointers",
    "takes",
]  # fmt: skip

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
        product, loaded = sgemm(), _built()
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        told = error.stderr.decode(errors="replace") if isinstance(error, subprocess.CalledProcessError) else ""
        first, *_ = told.strip().splitlines() or str(error).splitlines() or [type(error).__name__]
        warnings.warn(
            f"no compiled step, so that torch's operations run, a quarter to two fifths as fast: {first}", stacklevel=2
        )
        return None
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    loaded.use_gemm.argtypes, loaded.use_gemm.restype = [pointer], None
    loaded.model_memory.argtypes, loaded.model_memory.restype = [pointer, integer], ctypes.c_size_t
    loaded.model_forward.argtypes = [pointer] * 5 + [integer] + [pointer] * 2
    loaded.model_backward.argtypes, loaded.model_backward.restype = [pointer] * 9, None
    loaded.balance.argtypes, loaded.balance.restype = [integer] * 2 + [pointer] * 2 + [ctypes.c_float], None
    loaded.adamw.argtypes = [integer, pointer, ctypes.c_int64, *[ctypes.c_double] * 2, *[ctypes.c_float] * 2]
    loaded.adamw.argtypes, loaded.adamw.restype = [*loaded.adamw.argtypes, *[pointer] * 4, integer], ctypes.c_float
    loaded.use_gemm(ctypes.cast(product, pointer))
    return loaded


def _built() -> ctypes.CDLL:
    """The library of the first target that the compiler can do, from the cache where it has been made before.

    Raises:
        OSError: Where there is no compiler, or nothing can be written.
        InputError: Where ``$CC`` is no command.
        subprocess.SubprocessError: Where it can do no target.
    """
    try:
        compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]  # maybe with arguments, or a cache before it
    except ValueError as error:
        raise InputError(f"{error}, expected a command", where="CC") from None
    if shutil.which(compiler[0]) is None:
        raise OSError(f"no C compiler {compiler[0]!r} (CC)")
    failure: subprocess.CalledProcessError | None = None
    for target in _TARGETS:
        try:  # what the compiler defines tells its version and every instruction set that the machine has
            defined = subprocess.run(
                [*compiler, *target, "-dM", "-E", "-x", "c", os.devnull], capture_output=True, check=True, timeout=60
            ).stdout
        except subprocess.CalledProcessError as error:
            failure = failure or error
            continue
        digest = hashlib.sha256(_SOURCE.read_bytes() + repr((_FLAGS, target)).encode() + defined).hexdigest()[:32]
        place = cache_folder() / "native"
        file = next(filter(_is_whole, place.glob(f"{digest}-*.so")), None)
        if file is None:
            place.mkdir(parents=True, exist_ok=True)
            remove_unfinished(place, ".unfinished-*")
            with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=place) as folder:
                unfinished = Path(folder) / "native.so"
                command = [*compiler, *_FLAGS, *target, "-o", str(unfinished), str(_SOURCE), "-lm"]
                try:
                    subprocess.run(command, capture_output=True, check=True, timeout=120)
                except subprocess.CalledProcessError as error:
                    failure = failure or error
                    continue
                file = unfinished.replace(place / f"{digest}-{_content(unfinished)}.so")
        return ctypes.CDLL(str(file))
    assert failure is not None
    raise failure


def _content(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:32]


def _is_whole(file: Path) -> bool:
    """Whether it holds what its name says: to load a part of a library ends the process."""
    return file.stem.endswith(f"-{_content(file)}")


def takes(weights: Sequence[Tensor | None]) -> bool:
    """Whether `losses` takes a model's weights: whole ones (no shards) in float32 on a CPU, and there is a library."""
    return (
        all(
            weight is None
            or (type(weight) in (Tensor, Parameter) and weight.dtype is torch.float32 and weight.device.type == "cpu")
            for weight in weights
        )
        and library() is not None
    )


class Shape(ctypes.Structure):
    """`Shape` of the source: what a model's losses depend on beside parameters and tokens."""

    _fields_ = [
        *((name, ctypes.c_int) for name in (
            "B", "S", "D", "V", "H", "G", "C", "layers", "dense_layers", "dense_hidden",
            "E", "K", "expert_hidden", "shared_hidden", "softmax", "threads",
        )),
        ("balance", ctypes.c_float),
        ("z", ctypes.c_float),
    ]  # fmt: skip


class Group(ctypes.Structure):
    """`Group` of the source: parameters of one rate and one decay."""

    _fields_ = [("size", ctypes.c_int64), ("rate", ctypes.c_float), ("decay", ctypes.c_float)]


def balance(load_LE: Tensor, biases: Sequence[Tensor], rate: float) -> None:
    """Move each router's bias, (E), by its row of the loads; all of them are to be what `takes` takes."""
    loaded: Any = library()
    loaded.balance(*load_LE.shape, load_LE.data_ptr(), pointers(biases), rate)


def groups(sizes: Sequence[int], rates: Sequence[tuple[float, float]]) -> Any:
    """The groups of parameters that the source's `adamw` takes: how many each has, and its (rate, decay)."""
    return (Group * len(sizes))(*(Group(size, *rate) for size, rate in zip(sizes, rates, strict=True)))


PER_LAYER = 13
"""Pointers of a layer (`Layer` of the source), after the three of the model's ends."""


@dataclass(slots=True)
class Step:
    """What a model's losses depend on, beside its weights.

    Attributes:
        shape: Of the model and of this batch.
        table: Rotary factors, (S, (H + G) C/2).
        token_T, target_T: Ids, int64, contiguous.
        spare: Memory of earlier steps, the largest, taken and given back: fresh memory costs a page fault each 4 KiB.

    Raises:
        IndexError: Where there are not as many targets as tokens, or a sequence is longer than the table.
    """

    shape: Shape
    table: Tensor
    token_T: Tensor
    target_T: Tensor
    spare: list[Tensor]

    def __post_init__(self) -> None:
        if len(self.table) < self.shape.S or len(self.target_T) != len(self.token_T):
            problem = f"{len(self.token_T)} tokens, {len(self.target_T)} targets: expected as many"
            raise IndexError(f"{problem}, and at most {len(self.table)} a sequence")


def pointers(tensors: Sequence[Tensor | None]) -> Any:
    """Where tensors begin, in C: of weights or their gradients, in the order of `Model` of the source: embedding, gain
    of the last norm, head, and for each layer `PER_LAYER`, ``None`` for what it does not have. Loads are added to."""
    addresses = (None if tensor is None else tensor.data_ptr() for tensor in tensors)
    return (ctypes.c_void_p * len(tensors))(*addresses)


def forward(step: Step, weights: Any, *, training: bool) -> tuple[Tensor, Tensor]:
    """The memory in which `backward` finds what it needs, if `training`, and the two losses: cross-entropy of the
    targets, and the routers' added up.

    Raises:
        IndexError: Where an id is not in the vocabulary.
    """
    loaded: Any = library()
    step.shape.threads = torch.get_num_threads()
    size = loaded.model_memory(ctypes.byref(step.shape), training)
    memory = step.spare.pop() if step.spare else None
    if memory is None or len(memory) < size:
        memory = None  # given up before more is asked for
        memory = torch.empty(size)
    both = memory.new_empty(2)
    fits = loaded.model_forward(
        ctypes.byref(step.shape), weights, step.table.data_ptr(), step.token_T.data_ptr(), step.target_T.data_ptr(),
        training, memory.data_ptr(), both.data_ptr(),
    )  # fmt: skip
    if not fits:
        raise IndexError(f"a token id is not among the {step.shape.V} of the vocabulary")
    if not training:
        step.spare[:] = [memory]
    return memory, both


def backward(step: Step, weights: Any, memory: Tensor, grad_loss: Tensor, grad_router: Tensor, into: Any) -> None:
    """The gradients of the weights, written `into` where they point, after `forward`, whose memory is given back."""
    loaded: Any = library()
    loaded.model_backward(
        ctypes.byref(step.shape), weights, step.table.data_ptr(), step.token_T.data_ptr(), step.target_T.data_ptr(),
        memory.data_ptr(), grad_loss.data_ptr(), grad_router.data_ptr(), into,
    )  # fmt: skip
    step.spare[:] = [memory]


def losses(step: Step, weights: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    """The two losses of `forward`, for autograd.

    Raises:
        IndexError: Where an id is not in the vocabulary.
    """
    # Autograd's own `needs_input_grad` is that of the weights, also where gradients are off.
    training = torch.is_grad_enabled() and any(weight is not None and weight.requires_grad for weight in weights)
    return apply(_Losses, step, training, *weights)  # type: ignore[no-any-return]


class _Losses(Function):
    @staticmethod
    def forward(ctx: Any, step: Step, training: bool, *weights: Tensor | None) -> tuple[Tensor, Tensor]:
        own = pointers(weights)
        memory, both = forward(step, own, training=training)
        if training:
            ctx.save_for_backward(*weights)  # autograd tells where one has been changed since
            ctx.step, ctx.pointers, ctx.memory = step, own, memory
        loss, router_loss = both.unbind(0)
        return loss, router_loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, grad_router: Tensor) -> Any:
        weights: tuple[Tensor | None, ...] = ctx.saved_tensors
        if ctx.memory is None:
            raise RuntimeError("a second backward pass through the same losses: its memory has been given back")
        gradients = [None if weight is None else torch.empty_like(weight) for weight in weights]
        backward(ctx.step, ctx.pointers, ctx.memory, grad_loss, grad_router, pointers(gradients))
        ctx.memory = None
        return None, None, *gradients
