"""Whole trainings: what they see, what they report, and that they resume as if nothing had happened."""

import base64
import gc
import math
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4
from weakref import WeakSet

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.errors import InputError
from moe_optuna.training import Recipe, Report, TrainingFailure, TrainingResult, _checkpoint, native, train
from moe_optuna.training._attempt import micro_batches
from moe_optuna.training._module import LanguageModelling
from moe_optuna.training.capture import Pace
from moe_optuna.training.direct import DirectStep
from moe_optuna.training.model import MoELanguageModel
from moe_optuna.training.parameters import initialise
from moe_optuna.training.router import take_loads

Build = Callable[..., MoEArchitecture]
SMALL: dict[str, Any] = {
    "batch_tokens": 64, "learning_rate": 3e-3, "reports": 4, "report_windows": 4, "final_windows": 8
}  # fmt: skip


def trained(a: MoEArchitecture, folder: Path, *, tokens: int = 1280, changes: Any = (), **how: Any) -> TrainingResult:
    recipe = Recipe(data=str(folder), **(SMALL | dict(changes)))
    return train(a, compute=1e8, tokens=tokens, recipe=recipe, device="cpu", **({"threads": 1} | how))


@pytest.mark.parametrize("changes", [{}, {"average": 0.2, "schedule": "cosine"}], ids=["plain", "averaged cosine"])
def test_a_resumed_training_is_an_uninterrupted_one(
    architecture: Build, folder: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """To the last bit, interrupted between reports and stopped at one."""
    a, whole = architecture(n_moe_layers=2), []
    result = trained(a, folder, changes=changes, report=lambda r: whole.append(r.loss) or True)
    steps, asked = iter(range(100)), []

    def interrupted() -> bool:
        return next(steps) == 6

    for _ in range(2):
        part = trained(
            a, folder, changes=changes, checkpoint=tmp_path / "state", interrupted=interrupted,
            report=lambda r: asked.append(r.loss) or len(asked) != 3,
        )  # fmt: skip
        assert part.stopped
    resumed = trained(a, folder, changes=changes, checkpoint=tmp_path / "state")
    assert resumed.loss == result.loss
    assert resumed.curve == result.curve
    assert asked == whole[:3]
    assert {**resumed.diagnostics, "evaluation_seconds": 0} == {**result.diagnostics, "evaluation_seconds": 0}


def test_a_failed_training_leaves_its_memory_to_the_next(
    architecture: Build, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was short of memory above all: the next one in its process needs it."""
    original, alive, seen = MoELanguageModel.__init__, WeakSet[MoELanguageModel](), []

    def counted(model: MoELanguageModel, *arguments: Any) -> None:
        original(model, *arguments)
        alive.add(model)

    def fails(report: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(MoELanguageModel, "__init__", counted)
    with pytest.raises(TrainingFailure, match="memory is short"):
        trained(architecture(), folder, report=fails)
    trained(architecture(), folder, report=lambda report: seen.append(len(alive)))
    assert seen == [1] * 4


@pytest.mark.skipif(native.library() is None, reason="no C compiler")
@pytest.mark.parametrize("batch", [None, 32])
def test_a_training_takes_its_steps_without_autograd(
    architecture: Build, folder: Path, monkeypatch: pytest.MonkeyPatch, batch: int | None
) -> None:
    """To the same losses, to the last bit, as with it, of one batch and of two; in another precision they go through
    it."""
    taken, changes = [], {"micro_batch_tokens": batch}
    step = DirectStep.__call__
    monkeypatch.setattr(DirectStep, "__call__", lambda self, *windows: (taken.append(1), step(self, *windows)))
    result = trained(architecture(), folder, changes=changes)
    assert len(taken) == result.steps > 0
    monkeypatch.setattr(
        LanguageModelling, "direct", property(lambda self: None, lambda self, value: None), raising=False
    )
    assert trained(architecture(), folder, changes=changes).curve == result.curve
    assert len(taken) == result.steps
    monkeypatch.undo()
    monkeypatch.setattr(DirectStep, "__call__", lambda self, *windows: pytest.fail("no autograd"))
    trained(architecture(), folder, changes={"precision": "bfloat16"})


def test_the_optimizer_s_second_moment_is_the_rule_s(
    architecture: Build, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, step = set(), LanguageModelling._one_step

    def one_step(self: LanguageModelling, windows: Sequence[torch.Tensor], pace: Pace) -> None:
        found.add(self._optimizer.betas)
        step(self, windows, pace)

    monkeypatch.setattr(LanguageModelling, "_one_step", one_step)
    trained(architecture(), folder, changes={"beta2": 0.9})
    trained(architecture(), folder)
    assert found == {(0.9, 0.9), (0.9, 0.995)}


def test_a_report_stops_a_training_by_false_alone(architecture: Build, folder: Path) -> None:
    seen: list[int] = []
    whole = trained(architecture(), folder, report=lambda report: seen.append(report.index))
    assert (seen, whole.stopped) == ([1, 2, 3, 4], False)
    part = trained(architecture(), folder, report=lambda report: report.index < 2)
    assert (len(part.curve), part.stopped) == (2, True)


def test_an_interruption_is_heard_where_every_step_reports(architecture: Build, folder: Path, tmp_path: Path) -> None:
    many = {"reports": 20}
    whole = trained(architecture(), folder, changes=many)
    part = trained(architecture(), folder, changes=many, interrupted=lambda: True, checkpoint=tmp_path / "state")
    assert (part.stopped, part.steps) == (True, 1)
    assert trained(architecture(), folder, changes=many, checkpoint=tmp_path / "state").curve == whole.curve


@pytest.fixture
def keyboard() -> Iterator[None]:
    """Its interrupt is heard, which a process in the background may have been started without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_keyboard_s_interrupt_is_one(architecture: Build, folder: Path, tmp_path: Path, keyboard: None) -> None:
    """Not the end of the process; the next one is heard, too, and what was reported is saved."""
    whole, state = trained(architecture(), folder), tmp_path / "state"
    for index in (2, 3):

        def press(report: Report, index: int = index) -> None:
            if report.index == index:
                signal.raise_signal(signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            trained(architecture(), folder, checkpoint=state, report=press)
        assert (state / "training.pt").is_file()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert trained(architecture(), folder, checkpoint=state).curve == whole.curve


def test_a_resumed_training_does_not_keep_its_checkpoint(
    architecture: Build, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is as large as weights and moments together."""
    read, moments = _checkpoint.read, WeakSet[torch.Tensor]()

    def reading(*arguments: Any) -> Any:
        state = read(*arguments)
        moments.add(state["optimizer"]["moments"])
        return state

    monkeypatch.setattr(_checkpoint, "read", reading)
    trained(architecture(), folder, checkpoint=tmp_path, report=lambda report: False)
    held: list[int] = []
    trained(architecture(), folder, checkpoint=tmp_path, report=lambda report: held.append(len(moments)))
    assert held == [0, 0, 0]


def test_a_full_disk_is_told_as_one_and_leaves_the_checkpoint_before(
    architecture: Build, folder: Path, tmp_path: Path
) -> None:
    """The kernel refuses to let a file grow, wherever in the checkpoint that is."""
    whole, state = trained(architecture(), folder), tmp_path / "state"
    trained(architecture(), folder, checkpoint=state, report=lambda report: False)
    before = (state / "training.pt").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (0, 5_000, len(before) // 2, len(before) - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                trained(architecture(), folder, checkpoint=state)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert [(path.name, path.read_bytes()) for path in state.iterdir()] == [("training.pt", before)]
    assert trained(architecture(), folder, checkpoint=state).curve == whole.curve


def test_a_damaged_checkpoint_is_none(architecture: Build, folder: Path, tmp_path: Path) -> None:
    """Empty, cut or zeroed, as a power cut leaves it; with a warning. What torch can read is told as before."""
    whole, state = trained(architecture(), folder), tmp_path / "state"
    trained(architecture(), folder, checkpoint=state, report=lambda report: False)
    file = state / "training.pt"
    content = file.read_bytes()
    for damaged in (b"", content[: len(content) // 2], bytes(len(content))):
        file.write_bytes(damaged)
        with pytest.warns(UserWarning, match="training.pt: not a checkpoint, the training begins without it: ."):
            assert trained(architecture(), folder, checkpoint=state).curve == whole.curve
        assert trained(architecture(), folder, checkpoint=state).curve == whole.curve  # which has been written anew
    for other in ({"format": 0}, [1]):
        torch.save(other, file)
        with pytest.raises(InputError, match=r"training.pt: format (0|None), expected"):
            trained(architecture(), folder, checkpoint=state)
    trained(architecture(), folder, checkpoint=tmp_path / "other")
    with pytest.raises(InputError, match="another trial's checkpoint, which differs in seed"):
        trained(architecture(), folder, checkpoint=tmp_path / "other", seed=1)


def test_a_checkpoint_of_another_text_is_refused(architecture: Build, folder: Path, tmp_path: Path) -> None:
    """Files of the same names with other words in them."""
    trained(architecture(), folder, checkpoint=tmp_path / "state", report=lambda report: False)
    for file in folder.iterdir():
        file.write_text(file.read_text(encoding="utf-8").upper(), encoding="utf-8")
    with pytest.raises(InputError, match=r"training.pt: another trial's checkpoint, which differs in text$"):
        trained(architecture(), folder, checkpoint=tmp_path / "state")


def test_what_a_killed_process_left_is_removed(architecture: Build, folder: Path, tmp_path: Path) -> None:
    for name in (f".training.pt.{uuid4().hex}", "training.notes"):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (0, 0))
    trained(architecture(), folder, checkpoint=tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*training*")) == ["training.notes", "training.pt"]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"devices": 0}, "devices: 0, expected an integer of at least 1"),
        ({"devices": -1}, "devices: -1, expected an integer of at least 1"),
        ({"devices": 2}, "devices: 2, expected 1 outside a script"),
        ({"threads": 0}, "threads: 0, expected an integer of at least 1"),
        ({"tokens": math.inf}, "tokens: inf, expected a finite number of at least 1"),
        ({"tokens": math.nan}, "tokens: nan, expected a finite number of at least 1"),
        ({"seed": 1.5}, "seed: 1.5, expected an integer of at least 0"),
        ({"seed": -1}, "seed: -1, expected an integer of at least 0"),
        ({"seed": 2**32}, "seed: 4294967296, expected at most 4294967295: torch looks at 32 bits alone"),
        ({"checkpoint": __file__}, "test_train.py: a file, expected a folder"),
        ({"checkpoint": f"{__file__}/within"}, "test_train.py: a file, expected a folder"),
    ],
    ids=str,
)
def test_an_argument_that_is_none_is_told(
    architecture: Build, folder: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any], expected: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["-c"])
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(InputError, match=expected):
        trained(architecture(), folder, **how)


def test_no_memory_is_a_failure_of_the_training(architecture: Build, folder: Path) -> None:
    """More weights than any machine can address."""
    with pytest.raises(TrainingFailure, match=r"memory is short: .*allocate memory"):
        trained(architecture(vocab_size=2**31 - 1, d_model=2**16), folder)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=["gpu", "cpu", "python"],
)
def test_where_memory_is_short_a_step_takes_more_passes(
    architecture: Build, folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """To the losses of a training that was told so, unless a report, which cannot be taken back, has been made."""
    changes = {"precision": "bfloat16"}
    whole = trained(architecture(), folder, changes=changes)
    expected = trained(architecture(), folder, changes={**changes, "micro_batch_tokens": 16})
    assert (whole.diagnostics["micro_batches"], expected.diagnostics["micro_batches"]) == (1, 4)
    original, begun = MoELanguageModel.loss, []

    def short(model: MoELanguageModel, token_BS: torch.Tensor, target_BS: torch.Tensor) -> Any:
        if model.training and len(token_BS) > 1 and begun:
            raise error
        return original(model, token_BS, target_BS)

    monkeypatch.setattr(MoELanguageModel, "loss", short)
    with pytest.raises(TrainingFailure, match="memory is short"):
        trained(architecture(), folder, changes=changes, report=lambda report: begun.append(report))
    with pytest.warns(UserWarning, match="again with [24] forward passes a step") as warned:
        got = trained(architecture(), folder, changes=changes)
    assert len([each for each in warned if "again with" in str(each.message)]) == 2
    assert {**got.diagnostics, "evaluation_seconds": 0} == {**expected.diagnostics, "evaluation_seconds": 0}
    # Evaluation, whose sums are a little others, takes as few at a time only where it is told.
    np.testing.assert_allclose(got.curve, expected.curve, rtol=1e-6)


@given(st.integers(1, 200), st.integers(0, 200))
def test_the_passes_that_a_step_may_have(sequences: int, most: int) -> None:
    first, *others = counts = micro_batches(sequences, most)
    assert all(sequences % count == 0 for count in counts)
    fewer = (count for count in range(1, first) if sequences % count == 0)
    assert sequences // first <= max(1, most) < min((sequences // count for count in fewer), default=math.inf)
    assert counts[-1] == sequences
    assert all(later >= 2 * earlier for earlier, later in zip(counts, others, strict=False))


def test_a_training_leaves_no_model_behind(architecture: Build, folder: Path) -> None:
    """Though trainer and model refer to each other, and nobody collects garbage, as a worker goes on."""

    def models() -> int:
        return sum(type(one) is MoELanguageModel for one in gc.get_objects())

    gc.collect()
    before = models()
    gc.disable()
    try:
        trained(architecture(), folder)
        trained(architecture(), folder, report=lambda report: False)
        assert models() == before
    finally:
        gc.enable()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[bool, list[np.ndarray]]:
    """The windows that models see, in training (``True``) and in evaluation."""
    windows: dict[bool, list[np.ndarray]] = {True: [], False: []}
    step, held_out = LanguageModelling._one_step, LanguageModelling._held_out_loss

    def one_step(self: LanguageModelling, own: Sequence[torch.Tensor], pace: Pace) -> None:
        windows[True].extend(np.concatenate([window.numpy().copy() for window in own]))
        step(self, own, pace)

    def held_out_loss(self: LanguageModelling, own: torch.Tensor, sequences: int) -> float:
        windows[False].extend(own.numpy().copy())
        return held_out(self, own, sequences)

    monkeypatch.setattr(LanguageModelling, "_one_step", one_step)
    monkeypatch.setattr(LanguageModelling, "_held_out_loss", held_out_loss)
    return windows


def test_every_architecture_sees_the_same(
    architecture: Build, folder: Path, seen: dict[bool, list[np.ndarray]]
) -> None:
    """The same training windows in the same order and the same held-out ones, also in other batches and with other
    seeds; with an order of its own a seed has other windows, and still the same held-out ones."""
    runs = []
    for a, seed, changes in (
        (architecture(), 0, {}),
        (architecture(d_model=24, n_dense_layers=0, n_moe_layers=3, n_experts=6), 1, {}),
        (architecture(), 1, {"batch_tokens": 128}),
        (architecture(), 1, {"data_seed": None}),
    ):
        trained(a, folder, changes=changes, seed=seed)
        runs.append((np.stack(seen[True]), np.stack(seen[False])))
        seen[True], seen[False] = [], []
    (train_0, held_0), *others, (train_own, held_own) = runs
    assert train_0.shape == (80, 17)
    for train_i, held_i in others:
        np.testing.assert_array_equal(train_i, train_0)
        np.testing.assert_array_equal(held_i, held_0)
    assert (train_own != train_0).any()
    np.testing.assert_array_equal(held_own, held_0)


def test_the_loss_goes_to_the_entropy_of_the_text(architecture: Build, tmp_path: Path, monkeypatch: Any) -> None:
    """A text drawn from a Markov chain of five letters: its entropy rate is the least loss, and is reached."""
    monkeypatch.setenv("MOE_OPTUNA_CACHE", str(tmp_path / "cache"))
    generator = np.random.default_rng(0)
    transition = generator.dirichlet(np.full(5, 0.4), size=5)
    for number in range(40):
        letters = [number % 5]
        for _ in range(2000):
            letters.append(int(generator.choice(5, p=transition[letters[-1]])))
        (tmp_path / f"{number:02d}.txt").write_text("".join("abcde"[i] for i in letters), encoding="utf-8")
    stationary = np.linalg.matrix_power(transition, 200)[0]
    entropy = float(-(stationary[:, None] * transition * np.log(transition)).sum())
    changes = {"batch_tokens": 256, "learning_rate": 1e-2, "final_windows": 200, "held_out": 0.2, "reports": 1}
    result = trained(architecture(), tmp_path, tokens=64_000, changes=changes)
    assert 0.3 < entropy < 1.5
    # Held-out letters scatter about the entropy; the first letter of a window is guessed from a text that is cut.
    assert result.loss == pytest.approx(entropy, rel=0.05)


def test_loads_are_reported_by_layer(architecture: Build, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[torch.Tensor] = []
    monkeypatch.setattr(
        "moe_optuna.training._module.take_loads", lambda routers: taken.append(take_loads(routers)) or taken[-1]
    )
    found = trained(architecture(n_moe_layers=2), folder).diagnostics
    for layer, load_E in zip((1, 2), torch.stack(taken).sum(0), strict=True):
        shares = load_E.double().numpy()
        assert found[f"load_cv_layer_{layer}"] == pytest.approx(shares.std() / shares.mean(), rel=1e-5)
        assert found[f"dropped_layer_{layer}"] == 0
    assert found["load_cv"] == max(found["load_cv_layer_1"], found["load_cv_layer_2"])
    assert found["collapsed_routers"] == 0


def test_a_collapsed_router_is_told(architecture: Build, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bias that sends all tokens of one layer to the same two of eight experts."""
    monkeypatch.setattr("moe_optuna.training._module.balance", lambda *_: None)
    own = initialise

    def unfair(model: MoELanguageModel, seed: int) -> None:
        own(model, seed)
        model.layers[2].block.router.selection_bias[:2] = 10.0

    monkeypatch.setattr("moe_optuna.training.engine.initialise", unfair)
    found = trained(architecture(n_moe_layers=2, n_experts=8), folder).diagnostics
    assert found["collapsed_routers"] == 1
    assert found["load_cv_layer_2"] == pytest.approx(math.sqrt(3))


def test_a_token_first_attends_to_its_like(architecture: Build) -> None:
    """Without positions the scores of each head that is not an induction head's are those of a kernel: symmetric,
    greatest for the token itself, and there ``2 log S``."""
    a = architecture(context_length=64, n_heads=4, n_kv_heads=2, d_head=16, d_model=32)
    model = MoELanguageModel(a)
    initialise(model, 0)
    attention = model.layers[0].attention
    H, G, C = attention.shape
    with torch.no_grad():
        qk = attention.qkv(model.embedding(torch.arange(97, 127)))[:, : (H + G) * C]
        unturned = torch.ones_like(model.rotary[:1]).expand(30, -1)
        qk_THC = attention._normed_and_rotated(qk, unturned)
    for head in range(H // G, H):
        score_TT = qk_THC[:, head] @ qk_THC[:, H + head // 2].t() / C**0.5
        torch.testing.assert_close(score_TT, score_TT.t())
        torch.testing.assert_close(score_TT.diagonal(), torch.full((30,), 2 * math.log(64)), rtol=1e-4, atol=0)
        assert (score_TT.argmax(1) == torch.arange(30)).all()


def test_an_end_of_documents_beyond_the_tokens_is_told(architecture: Build, folder: Path, tmp_path: Path) -> None:
    """A vocabulary of 256 tokens, each a byte, needs 257 ids."""
    pytest.importorskip("tiktoken")
    ranks = "".join(f"{base64.b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256))
    (tmp_path / "bytes.tiktoken").write_text(ranks)
    with pytest.raises(
        InputError, match="256, expected at least the text's 257 token ids, the last of which ends a doc"
    ):
        trained(architecture(), folder, changes={"vocabulary": str(tmp_path / "bytes.tiktoken")})


def test_documents_are_masked_where_the_recipe_says(architecture: Build, folder: Path, tmp_path: Path) -> None:
    """Another loss than without; and a text whose ends of documents are not known is refused."""
    plain, masked = (trained(architecture(), folder, changes={"document_mask": mask}) for mask in (False, True))
    assert masked.loss != plain.loss
    assert masked.loss == pytest.approx(plain.loss, rel=0.05)
    ids = np.arange(4000, dtype=np.uint16) % 300
    ids.tofile(tmp_path / "ids.bin")
    with pytest.raises(InputError, match="document_mask: true, but where a document of this text ends"):
        trained(architecture(vocab_size=300), tmp_path / "ids.bin", changes={"document_mask": True})


def test_a_training_without_the_compiled_step_says_so(
    architecture: Build, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the trainer is kept quiet."""
    monkeypatch.setenv("CC", "no-such-compiler")
    native.library.cache_clear()
    try:
        with pytest.warns(UserWarning, match="no compiled step.* no C compiler 'no-such-compiler'"):
            trained(architecture(), folder)
    finally:
        native.library.cache_clear()
