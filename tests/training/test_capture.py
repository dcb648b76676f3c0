"""Steps that are recorded and replayed, as on a GPU, on a stand-in for its graphs (`tape`)."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from tape import Tape
from torch.utils._python_dispatch import TorchDispatchMode

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.training import Recipe, TrainingFailure, TrainingResult, _module, capture, kernels, train
from moe_optuna.training.capture import CapturedStep, CudaGraphs, Pace
from moe_optuna.training.model import MoELanguageModel

Build = Callable[..., MoEArchitecture]


@pytest.fixture
def as_on_a_gpu(no_library: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own operations, as a GPU runs them."""
    monkeypatch.setattr(kernels, "written_out", lambda x: False)


def trained(a: MoEArchitecture, folder: Path, changes: Any = (), **how: Any) -> TrainingResult:
    recipe: dict[str, Any] = {
        "data": str(folder), "batch_tokens": 64, "learning_rate": 1e-2, "reports": 4, "report_windows": 4,
        "final_windows": 8, "precision": "bfloat16", "average": 0.3,
    }  # fmt: skip
    recipe |= dict(changes)
    return train(a, compute=1e8, tokens=1280, recipe=Recipe(**recipe), device="cpu", threads=1, **how)


def use(monkeypatch: pytest.MonkeyPatch, recorder: Any, warm: int = capture.WARM_STEPS) -> None:
    monkeypatch.setattr(_module, "recorder_for", lambda module: recorder)
    monkeypatch.setattr(capture, "WARM_STEPS", warm)


@pytest.mark.parametrize("changes", [{}, {"micro_batch_tokens": 32, "document_mask": True}], ids=["", "micro-batches"])
def test_a_replayed_training_is_the_same(
    changes: dict[str, Any], architecture: Build, folder: Path, as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit as one whose steps are all done one operation at a time: schedule, biases and averages go on."""
    a = architecture(n_moe_layers=2)
    use(monkeypatch, Tape(), warm=10**9)
    expected = trained(a, folder, changes)
    use(monkeypatch, tape := Tape())
    got = trained(a, folder, changes)
    assert (expected.diagnostics["replayed_steps"], got.diagnostics["replayed_steps"]) == (0, 17)
    assert tape.replays == 17
    assert "aten._grouped_mm.default" in tape.recorded
    assert got.curve == expected.curve
    shared = {"evaluation_seconds": 0, "replayed_steps": 0}
    assert got.diagnostics | shared == expected.diagnostics | shared


def test_and_that_of_a_cpu_to_rounding(
    architecture: Build, folder: Path, no_library: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers of Python in double precision there, read from the device in single here."""
    expected = trained(architecture(), folder, {"precision": "float32"})
    use(monkeypatch, Tape())
    got = trained(architecture(), folder, {"precision": "float32"})
    assert "replayed_steps" not in expected.diagnostics
    assert got.diagnostics["replayed_steps"] == 17
    assert got.loss == pytest.approx(expected.loss, rel=1e-5)
    monkeypatch.setattr(_module.LanguageModelling, "_pace", lambda self, number: Pace(1.0, 0.01, 0.3))
    assert trained(architecture(), folder, {"precision": "float32"}).loss != pytest.approx(expected.loss, rel=1e-3)


def test_a_replayed_training_resumes(
    architecture: Build, folder: Path, tmp_path: Path, as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Tape())
    whole = trained(architecture(), folder)
    steps = iter(range(100))
    use(monkeypatch, Tape())
    part = trained(architecture(), folder, checkpoint=tmp_path, interrupted=lambda: next(steps) == 7)
    use(monkeypatch, Tape())
    rest = trained(architecture(), folder, checkpoint=tmp_path)
    assert part.stopped
    assert (rest.curve, rest.loss) == (whole.curve, whole.loss)


class Products(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.kinds: list[torch.dtype] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        result = function(*arguments, **(named or {}))
        if function is torch.ops.aten.mm.default:
            self.kinds.append(result.dtype)
        return result


def test_the_router_goes_back_in_float32(
    architecture: Build, folder: Path, as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two products of each router, in a training that is in bfloat16 else."""
    original, heard = _module.LanguageModelling.backward, Products()

    def backward(module: Any, loss: torch.Tensor) -> None:
        with heard:
            original(module, loss)

    monkeypatch.setattr(_module.LanguageModelling, "backward", backward)
    trained(architecture(n_moe_layers=2), folder)
    assert heard.kinds.count(torch.float32) == 20 * 2 * 2
    assert heard.kinds.count(torch.bfloat16) > 20 * 2 * 2


class Broken(Tape):
    """Fails half way, as a graph does at an operation that cannot be in one, and then at the end: nothing has been done
    on the device."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        def end() -> None:
            raise RuntimeError("operation failed due to a previous error during capture")

        with ExitStack() as stack:
            stack.callback(end)
            raise RuntimeError("operation not permitted when stream is capturing\nand more")


def test_what_cannot_be_recorded_is_done_as_it_is(
    architecture: Build, folder: Path, as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Tape(), warm=10**9)
    expected = trained(architecture(), folder)
    use(monkeypatch, Broken())
    with pytest.warns(UserWarning, match=r"no CUDA graph.*operation not permitted when stream is capturing$"):
        got = trained(architecture(), folder)
    assert got.diagnostics["replayed_steps"] == 0
    assert got.curve == expected.curve


def test_evaluation_that_finds_no_memory_takes_that_of_the_recorded_step(
    architecture: Build, folder: Path, as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the steps after it are done as they are; where nothing was recorded memory is short."""
    use(monkeypatch, Tape(), warm=10**9)
    expected = trained(architecture(), folder)
    original, calls = _module.LanguageModelling._held_out_loss, iter(range(100))

    def short(module: Any, *arguments: Any) -> float:
        if next(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(module, *arguments)

    monkeypatch.setattr(_module.LanguageModelling, "_held_out_loss", short)
    use(monkeypatch, Tape())
    with pytest.warns(UserWarning, match=r"no CUDA graph.*CUDA out of memory"):
        got = trained(architecture(), folder)
    assert got.curve == expected.curve
    assert got.diagnostics["replayed_steps"] == 7
    calls = repeat(1)
    use(monkeypatch, Tape(), warm=10**9)
    with pytest.raises(TrainingFailure, match="CUDA out of memory"), pytest.warns(UserWarning, match="forward passes"):
        trained(architecture(), folder)


def test_a_recording_that_failed_leaves_no_gradient(as_on_a_gpu: None) -> None:
    """Half of a step's work is forgotten, else it would be in the next one's."""
    weight, sums = torch.ones(2, requires_grad=True), []

    class HalfWay(Tape):
        def record(self, work: Callable[[], None]) -> Callable[[], None]:
            weight.sum().backward()
            raise RuntimeError("half way")

    def step(windows: Any, pace: Pace) -> None:
        (weight * windows[0]).sum().backward()
        assert weight.grad is not None
        sums.append(weight.grad.clone())
        weight.grad = None

    def forget() -> None:
        weight.grad = None

    captured = CapturedStep(step, [Pace(1.0, 0.0, 0.0)] * 6, torch.device("cpu"), HalfWay(), forget)
    for number in range(6):
        captured([torch.full((2,), float(number))], number)
    assert captured.failure == "half way"
    assert [gradient.tolist() for gradient in sums] == [[float(n)] * 2 for n in range(6)]


def test_a_recording_that_failed_leaves_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of `torch.cuda` what the recorder uses, which stays on the recording's stream where that cannot be ended."""
    now = ["outer"]

    @contextmanager
    def stream(name: str) -> Iterator[None]:
        before, now[0] = now[0], name
        try:
            yield
        finally:
            now[0] = before

    @contextmanager
    def graph(graph: Any, stream: str) -> Iterator[None]:
        now[0] = stream
        yield
        raise RuntimeError("operation failed due to a previous error during capture")

    known = {"Stream": lambda: "aside", "CUDAGraph": object, "current_stream": lambda: now[0]}
    for name, value in {**known, "stream": stream, "graph": graph}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    with pytest.raises(RuntimeError, match="previous error"):
        CudaGraphs().record(lambda: None)
    assert now == ["outer"]


@pytest.mark.parametrize(("d_expert", "grouped"), [(8, True), (12, False)])
def test_only_single_kernels_are_recorded(architecture: Build, d_expert: int, grouped: bool) -> None:
    """A width whose rows are no multiple of 16 bytes takes a loop over experts, which asks how many rows each has."""
    assert MoELanguageModel(architecture(d_expert=d_expert)).is_grouped() == grouped
