"""Peak memory of a trial, measured in a fresh process and predicted by `moe_optuna.memory.trial_memory`.

    python benchmarks/memory.py

For the sizes of `training_speed.py`, and for some of them with half and with twice the sequences, with wider and with
more experts: what building the model and three training steps add to a process' greatest resident size (Linux:
VmHWM after the counter was reset), after a tiny model has trained in it.
"""

from __future__ import annotations

import dataclasses
import multiprocessing

import torch
from record import record
from training_speed import SIZES, peak_of

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.memory import trial_memory


def cases() -> dict[str, tuple[MoEArchitecture, int]]:
    found = {name: size for name, size in SIZES.items() if not name.startswith("holistic") and "trial" not in name}
    for name in ("cpu-3", "lab-1", "lab-2"):
        a, sequences = SIZES[name]
        found[f"{name}, twice the sequences"] = (a, 2 * sequences)
        found[f"{name}, half the sequences"] = (a, sequences // 2)
        found[f"{name}, twice d_expert"] = (dataclasses.replace(a, d_expert=2 * a.d_expert), sequences)
        found[f"{name}, twice n_experts"] = (dataclasses.replace(a, n_experts=2 * a.n_experts), sequences)
        found[f"{name}, twice top_k"] = (dataclasses.replace(a, top_k=2 * a.top_k), sequences)
    return found


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for name, (a, sequences) in cases().items():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            measured = pool.apply(peak_of, ("moe_optuna", a, sequences))
        predicted = trial_memory(a, tokens=sequences * a.context_length).total / 2**20
        rows.append({"case": name, "measured_mib": round(measured, 1), "predicted_mib": round(predicted, 1),
                     "error": round(predicted / measured - 1, 3)})  # fmt: skip
        print("{case:28s} measured {measured_mib:8.1f} MiB, predicted {predicted_mib:8.1f}, {error:+.1%}".format(
            **rows[-1]), flush=True)  # fmt: skip
        record("memory", rows)
    print(f"largest error {max(abs(row['error']) for row in rows):.1%}")


if __name__ == "__main__":
    main()
