"""How much does the held-out loss scatter over seeds, and what did each lever of the recipe buy?

    python benchmarks/seed_noise.py [--seeds 8] [--limit SECONDS]
    python benchmarks/seed_noise.py --space lab --architectures wide --levels recipe --seeds 4 --out seed_noise_lab

The levers are switched on one after the other, from a plain recipe to the project's own; each line is the relative
standard deviation of the loss over seeds and the mean loss in bits per byte (of another text or vocabulary, nats per
token are something else), at a space's smallest budget, for the widest and the deepest architecture of its phase 1. The
lines after `recipe` change one thing in it: the order of the data differs too (`and order`), or something that is often
recommended is added. With eight seeds a standard deviation is known to a quarter of itself.

Results are written after each training and resumed, as long as the rule has not changed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from fairness import corners, identity, tokens
from record import RESULTS, record
from torch import Tensor

from moe_optuna.space import SearchSpace
from moe_optuna.training import Recipe, attention, engine, model, parameters, train
from moe_optuna.training.rules import hyperparameters


@dataclass(frozen=True)
class Level:
    """A recipe less the levers that are still off; batch and rate as factors of the rule's."""

    own_order: bool = False
    batch: float = 1
    rate: float = 1
    plain_embedding: bool = False
    slow_embedding: bool = False
    long_rotary: bool = False
    random_queries: bool = False
    no_induction: bool = False
    random_matrices: bool = False
    random_embedding: bool = False
    all_turn: bool = False
    recipe: dict[str, Any] = field(default_factory=dict)


PLAIN = Level(
    own_order=True,
    batch=4,
    rate=2,
    plain_embedding=True,
    long_rotary=True,
    random_queries=True,
    slow_embedding=True,
    no_induction=True,
    random_matrices=True,
    random_embedding=True,
    all_turn=True,
    recipe={"average": 0.0, "data": "python", "vocabulary": "bytes", "beta2": 0.95},
)
LEVELS: dict[str, Level] = {"plain": PLAIN}
for name, change in (
    ("common order", {"own_order": False}),
    ("small batch", {"batch": 1}),
    ("lower rate", {"rate": 1}),
    ("embedding", {"plain_embedding": False}),
    ("rotary by context", {"long_rotary": False}),
    ("queries as keys", {"random_queries": False}),
    ("averaged weights", {"recipe": {"data": "python", "vocabulary": "bytes", "beta2": 0.95}}),
    ("documentation", {"recipe": {"data": "docs", "vocabulary": "bytes", "beta2": 0.95}}),
    ("byte pairs", {"recipe": {"beta2": 0.95}}),
    ("embedding's rate", {"slow_embedding": False}),
    ("induction heads", {"no_induction": False}),
    ("orthogonal matrices", {"random_matrices": False}),
    ("pairs that do not turn", {"all_turn": False}),
    ("longer second moment", {"recipe": {}}),
    ("recipe", {"random_embedding": False}),
):
    LEVELS[name] = replace(list(LEVELS.values())[-1], **change)  # type: ignore[arg-type]
LEVELS |= {
    "and order": Level(own_order=True),
    "long average": Level(recipe={"average": 0.2}),
    "long warm-up": Level(recipe={"warmup": 0.3}),
    "long decay": Level(recipe={"decay": 0.8}),
    "half rate": Level(rate=0.5),
    "double rate": Level(rate=2),
    "half batch": Level(batch=0.5),
}


def rotary_by_10000(context_length: int, n_heads: int, d_head: int) -> Tensor:
    frequency = 10_000.0 ** (-torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)
    angle = torch.outer(torch.arange(context_length, dtype=torch.float64), frequency)
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64).repeat(1, n_heads)


@contextmanager
def switched(level: Level) -> Iterator[None]:
    """The training room with the level's levers off."""
    own = parameters.initialise

    def initialise(network: Any, seed: int) -> None:
        own(network, seed)
        if level.plain_embedding:
            with torch.no_grad():
                generator = torch.Generator().manual_seed(seed)
                network.embedding.weight.normal_(std=0.5, generator=generator)

    with ExitStack() as stack:
        stack.enter_context(patch.object(engine, "initialise", initialise))
        if level.slow_embedding:
            stack.enter_context(patch.object(parameters, "EMBEDDING_FACTOR", 1.0))
        if level.long_rotary:
            stack.enter_context(patch.object(model, "rotary_table", rotary_by_10000))
        if level.random_queries:
            stack.enter_context(patch.object(parameters, "_match", lambda *arguments: None))
        if level.random_embedding:
            stack.enter_context(patch.object(parameters, "_alike", lambda drawn, shared: (drawn + shared / 2, shared)))
        if level.random_matrices:
            stack.enter_context(patch.object(parameters, "_orthogonal", lambda drawn: drawn))
        if level.all_turn:
            stack.enter_context(patch.object(attention, "_SLOWEST", 0.0))
        if level.no_induction:
            stack.enter_context(patch.object(parameters, "start_as_induction_heads", lambda *arguments: None))
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="cpu")
    parser.add_argument("--architectures", nargs="+", default=["wide", "deep"], help="corners, as in fairness.py")
    parser.add_argument("--levels", nargs="+", default=list(LEVELS), choices=list(LEVELS))
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--limit", type=float, default=float("inf"), help="stop after so many seconds; run again")
    parser.add_argument("--out", default="seed_noise")
    arguments = parser.parse_args()
    space = SearchSpace.load(arguments.space)
    base, compute = replace(Recipe.from_table(space.training), reports=1), space.budgets[0]
    path, begin = RESULTS / f"{arguments.out}.json", time.monotonic()
    results: dict[str, Any] = json.loads(path.read_text())["data"] if path.is_file() else {}
    for name in arguments.levels:
        level = LEVELS[name]
        for corner in arguments.architectures:
            a = corners(space, compute)[corner]
            if level.recipe.get("vocabulary") == "bytes":
                a = replace(a, vocab_size=256)
            rule_of = replace(base, beta2=level.recipe.get("beta2"))  # which the rate goes with
            hyper = hyperparameters(a, compute=compute, tokens=tokens(a, compute), recipe=rule_of)
            recipe = replace(
                base,
                data_seed=None if level.own_order else base.data_seed,
                batch_tokens=round(level.batch * hyper.sequences * a.context_length),
                learning_rate=level.rate * hyper.learning_rate,
                **level.recipe,
            )
            with switched(level):
                rule = f"{identity(a, compute, recipe)} {level}"
                key = f"{name}, {corner}"
                if results.get(key, {}).get("rule") != rule:
                    results[key] = {"rule": rule, "compute": compute, "tokens": tokens(a, compute)}
                    results[key] |= {"loss": [], "bits": []}
                entry = results[key]
                while len(entry["loss"]) < arguments.seeds and time.monotonic() - begin < arguments.limit:
                    result = train(
                        a,
                        compute=compute,
                        tokens=tokens(a, compute),
                        recipe=recipe,
                        seed=len(entry["loss"]),
                        device="cpu",
                        threads=1,
                    )
                    entry["loss"].append(result.loss)
                    entry["bits"].append(result.bits_per_byte)
                    entry["steps"] = result.steps
                    record(arguments.out, results)
            if len(entry["loss"]) < arguments.seeds:
                continue
            loss = np.array(entry["loss"])
            entry |= {"mean": float(np.mean(entry["bits"])), "noise": float(loss.std(ddof=1) / loss.mean())}
            print(
                f"{key:26s} noise {100 * entry['noise']:.2f} %  mean {entry['mean']:.3f} bits per byte  "
                f"({len(loss)} seeds, {entry['steps']} steps, {entry['tokens']} tokens)",
                flush=True,
            )
    record(arguments.out, results)


if __name__ == "__main__":
    main()
