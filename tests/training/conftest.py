"""Small architectures, and a corpus of a few kilobytes, for the tests of this room."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.training import native


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine without a compiler."""
    native.library.cache_clear()
    monkeypatch.setenv("MOE_OPTUNA_NATIVE", "0")
    yield
    native.library.cache_clear()


@pytest.fixture(params=["native", "torch"])
def operations(request: pytest.FixtureRequest) -> str:
    """Whose operations run, the compiled ones or torch's."""
    if request.param == "torch":
        request.getfixturevalue("no_library")
    elif native.library() is None:
        pytest.skip("no compiler, or no sgemm in torch's library")
    return str(request.param)


@pytest.fixture
def architecture() -> Callable[..., MoEArchitecture]:
    """A small mixture; keywords change it."""

    def build(**changes: Any) -> MoEArchitecture:
        dimensions: dict[str, Any] = {
            "d_model": 16, "n_dense_layers": 1, "n_moe_layers": 1, "n_heads": 2, "n_kv_heads": 1, "d_head": 8,
            "d_dense": 32, "d_expert": 8, "n_experts": 4, "top_k": 2, "n_shared_experts": 1, "context_length": 16,
            "vocab_size": 256,
        }  # fmt: skip
        return MoEArchitecture(**(dimensions | changes))

    return build


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of 40 small documents, and a cache of the test's own."""
    monkeypatch.setenv("MOE_OPTUNA_CACHE", str(tmp_path / "cache"))
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(40):
        words = " ".join(f"{number * i % 97} divided by {i} leaves {number % i};" for i in range(1, 40))
        (texts / f"{number:02d}.txt").write_text(words, encoding="utf-8")
    return texts
