"""`python tiny_search.py FOLDER`: the ladder of the tiny space with instant trainings, to be killed."""

from __future__ import annotations

import sys

from tiny_space import tiny_space

from moe_optuna.search import search

if __name__ == "__main__":
    search(
        tiny_space(),
        out=sys.argv[1],
        workers=1,
        trial="instant_trials",
        observer=lambda event: print(event.kind, event.trial, event.state, flush=True),
    )
