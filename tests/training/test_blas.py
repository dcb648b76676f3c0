"""Which `sgemm` the compiled step calls, and that each of them multiplies."""

import ctypes
import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.errors import InputError
from moe_optuna.training import MoELanguageModel, Recipe, _blas, native
from moe_optuna.training.parameters import initialise

CHOICES = ["torch", "openblas"] if find_spec("scipy_openblas32") else ["torch"]


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str | None], None]]:
    def forget() -> None:
        _blas.sgemm.cache_clear()
        native.library.cache_clear()

    def use(choice: str | None) -> None:
        forget()
        if choice is None:
            monkeypatch.delenv("MOE_OPTUNA_BLAS", raising=False)
        else:
            monkeypatch.setenv("MOE_OPTUNA_BLAS", choice)

    yield use
    monkeypatch.undo()
    forget()
    native.library()  # the compiled functions keep the product that they were given last


def sgemm() -> Any:
    try:
        return _blas.sgemm()
    except (OSError, AttributeError):
        pytest.skip("torch's library has no sgemm")


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 70, 5), (129, 17, 300), (64, 128, 16)])
def test_a_product_is_that_of_torch_in_double(choose: Any, choice: str, shape: tuple[int, int, int]) -> None:
    choose(choice)
    m, n, k = shape
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, generator=generator) for size in ((m, k), (k, n)))
    c = torch.empty(m, n)
    i, one, zero = ctypes.c_int, ctypes.c_float(1), ctypes.c_float(0)
    ref = ctypes.byref
    pointer = ctypes.c_void_p
    sgemm()(  # column by column, so that c' = b' a'
        b"N", b"N", ref(i(n)), ref(i(m)), ref(i(k)), ref(one), pointer(b.data_ptr()), ref(i(n)),
        pointer(a.data_ptr()), ref(i(k)), ref(zero), pointer(c.data_ptr()), ref(i(n)),
    )  # fmt: skip
    torch.testing.assert_close(c.double(), a.double() @ b.double(), rtol=1e-5, atol=1e-5 * k**0.5)


@pytest.mark.skipif(len(CHOICES) < 2, reason="no package scipy-openblas32 for this machine")
def test_openblas_where_the_processor_is_amds(choose: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(None)
    monkeypatch.setattr(_blas, "_is_amd", lambda: True)
    assert _blas.sgemm().__name__ == "scipy_sgemm_"
    choose(None)
    monkeypatch.setattr(_blas, "_is_amd", lambda: False)
    assert sgemm().__name__ == "sgemm_"


@pytest.mark.skipif(len(CHOICES) < 2, reason="no package scipy-openblas32 for this machine")
@pytest.mark.parametrize("threads", [None, "3"])
def test_what_is_set_for_others_stays(choose: Any, monkeypatch: pytest.MonkeyPatch, threads: str | None) -> None:
    if threads is None:
        monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", threads)
    choose("openblas")
    _blas.sgemm()
    assert os.environ.get("OPENBLAS_NUM_THREADS") == threads


def test_a_choice_that_cannot_be_is_refused_in_a_line(choose: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    choose("mkl")
    with pytest.raises(InputError, match=r"^MOE_OPTUNA_BLAS: 'mkl', expected torch or openblas$"):
        native.library()
    choose("openblas")
    monkeypatch.setattr(_blas, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^MOE_OPTUNA_BLAS: 'openblas', .*no package scipy-openblas32$"):
        native.library()


def test_without_openblas_torch_multiplies(choose: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(None)
    monkeypatch.setattr(_blas, "_is_amd", lambda: True)
    monkeypatch.setattr(_blas, "find_spec", lambda name: None)
    assert sgemm().__name__ == "sgemm_"


@pytest.mark.skipif(len(CHOICES) < 2, reason="no package scipy-openblas32 for this machine")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_model_is_the_same_with_either(
    choose: Any, architecture: Callable[..., MoEArchitecture], threads: int
) -> None:
    """In a context, and with widths, for which products are divided among threads unequally."""
    torch.set_num_threads(threads)
    model = MoELanguageModel(architecture(d_model=24, context_length=33), Recipe())
    initialise(model, 0)
    tokens = torch.arange(3 * 34).view(3, 34)
    found = []
    for choice in CHOICES:
        choose(choice)
        if native.library() is None:
            pytest.skip("no compiler")
        loss, router_loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        found.append([loss, router_loss, *torch.autograd.grad(loss + router_loss, list(model.parameters()))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
