"""`Recipe`: everything about a training that is not the architecture, the budget or the seed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import Any

from moe_optuna.errors import InputError, did_you_mean

__all__ = ["Recipe"]

_CHOICES = {
    "schedule": ("wsd", "cosine"),
    "scores": ("sigmoid", "softmax"),
    "precision": ("auto", "float32", "bfloat16"),
    "token_dtype": ("uint16", "uint32"),
    "strategy": ("ddp", "fsdp"),
    "compile": ("auto", "always", "never"),
}
_NUMBERS: dict[type, Any] = {int: Integral, float: Real}  # numpy's, too
_FRACTIONS = ("held_out", "warmup", "decay", "average", "beta2")
_POSITIVE = ("learning_rate", "batch_tokens", "micro_batch_tokens", "reports", "report_windows", "final_windows")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What every trial of a search shares; the ``[training]`` table of a search space.

    Attributes:
        data: ``"docs"`` (what the standard library and five packages, numpy among them, say about themselves, 20 MB),
            ``"python"`` (the standard library's sources), a folder of text files or one of them (``.txt``, ``.md``,
            ``.py`` and the like, in UTF-8; of a ``.jsonl`` file the string ``text`` of each line is a document), a
            ``.bin`` file of token ids, a folder with ``train.bin`` and ``val.bin``, or a folder that `datasets` saved,
            with a column ``text`` (of several splits ``train``). A relative path is relative to the current folder.
        vocabulary: ``"bytes"``, ``"bpe-<size>"`` (byte pairs, learned from the text that is trained on; `size` token
            ids), or a vocabulary file of `tokenizers` (``.json``) or `tiktoken` (``.tiktoken``).
        token_dtype: Integers of a ``.bin`` file, ``uint16`` or ``uint32``.
        held_out: Share of the documents that is never trained on.
        document_mask: Whether a token attends within its own document only, where a window spans several.
        schedule: ``wsd`` (warm-up, stable, linear decay to zero) or ``cosine`` (to zero).
        warmup, decay: Shares of the steps in which the learning rate rises, and (``wsd``) falls.
        learning_rate: Of a matrix with the reference fan-in; ``None``: by the rule (`moe_optuna.training.rules`).
        batch_tokens: Tokens of an optimizer step, before rounding to whole sequences; ``None``: by the rule.
        weight_decay, beta2: AdamW's; ``None``: by the rule.
        micro_batch_tokens: Most tokens of one forward pass on one device; ``None``: the batch, in as many passes as
            memory asks for.
        scores: Router scores.
        bias_rate: Step of the bias that balances the experts' load without a loss (arXiv:2408.15664).
        balance_loss: Coefficient of the sequence-wise balance loss (arXiv:2412.19437, eq. 17).
        z_loss: Coefficient of the router z-loss (arXiv:2202.08906).
        average: Horizon of the averaged weights used at evaluation, as a share of the steps done; 0: none.
        reports: Points of the report grid.
        report_windows, final_windows: Held-out windows evaluated at a report, and at the last one.
        data_seed: Order of the training windows, the same for all trials; ``None``: the trial's seed.
        precision: ``auto`` is bfloat16 where a GPU trains and float32 on a CPU.
        strategy: Where a trial has several devices, ``ddp``: each has the whole model; or ``fsdp``: each keeps a part
            of parameters, gradients and moments, for models that one device cannot hold.
        graph: Whether on a GPU a step is recorded once and replayed (a CUDA graph), where the trial has no other.
        compile: Whether on a GPU `torch.compile` makes kernels for layers and head, which takes a minute or so:
            ``"always"``, ``"never"``, or where a training is long enough for that (``"auto"``: from 1e17 FLOPs on).
    """

    data: str = "docs"
    vocabulary: str = "bytes"
    token_dtype: str = "uint16"
    held_out: float = 0.05
    document_mask: bool = False
    schedule: str = "wsd"
    warmup: float = 0.1
    decay: float = 0.4
    learning_rate: float | None = None
    batch_tokens: int | None = None
    weight_decay: float | None = None
    beta2: float | None = None
    micro_batch_tokens: int | None = None
    scores: str = "sigmoid"
    bias_rate: float = 0.01
    balance_loss: float = 1e-3
    z_loss: float = 1e-4
    average: float = 0.05
    reports: int = 16
    report_windows: int = 32
    final_windows: int = 256
    data_seed: int | None = 0
    precision: str = "auto"
    strategy: str = "ddp"
    graph: bool = True
    compile: str = "auto"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            kind = (
                type(field.default)
                if field.default is not None
                else (int if "tokens" in field.name or "seed" in field.name else float)
            )
            if value is None and (field.default is None or field.name == "data_seed"):
                continue
            if kind in (int, float) and isinstance(value, _NUMBERS[kind]) and not isinstance(value, bool):
                object.__setattr__(self, field.name, value := kind(value))
            if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
                name = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}[kind]
                raise InputError(f"{value!r}, expected {name}", where=field.name)
            if isinstance(value, (int, float)) and not (math.isfinite(value) and value >= 0):
                raise InputError(f"{value!r}, expected a finite number of at least 0", where=field.name)
            if field.name in _POSITIVE and value == 0:
                raise InputError("0, expected more", where=field.name)
            if field.name in _FRACTIONS and not value < 1:  # type: ignore[operator]
                raise InputError(f"{value!r}, expected a fraction below 1", where=field.name)
            if field.name in _CHOICES and value not in _CHOICES[field.name]:
                known = _CHOICES[field.name]
                hint = did_you_mean(str(value), known)
                raise InputError(f"{value!r}, expected one of {', '.join(known)}{hint}", where=field.name)
        if not self.data:  # a path to the current folder
            raise InputError("'', expected 'docs', 'python', a file or a folder", where="data")
        if self.held_out == 0:
            raise InputError("0, expected more", where="held_out")
        if self.warmup + self.decay > 1:
            raise InputError(f"{self.warmup} and {self.decay}, expected at most 1 together", where="warmup, decay")
        if self.report_windows > self.final_windows:
            raise InputError(
                f"{self.report_windows}, expected at most final_windows = {self.final_windows}", where="report_windows"
            )

    @classmethod
    def from_table(cls, table: Mapping[str, Any], *, where: object = "training") -> Recipe:
        """A recipe from a TOML table; what it leaves out keeps its default.

        Raises:
            InputError: On an unknown key or a value that does not fit, named with `where`.
        """
        known = [field.name for field in fields(cls)]
        for key in table:
            if key not in known:
                raise InputError(f"unknown key {key!r}{did_you_mean(key, known)}", where=where)
        try:
            return cls(**table)
        except InputError as error:
            raise InputError(str(error), where=where) from None

    from_dict = from_table

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON that `from_dict` reads back."""
        return asdict(self)
