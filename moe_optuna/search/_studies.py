"""The studies of a search: opened as an earlier run left them, and refused where they are another search's."""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from moe_optuna.errors import InputError
from moe_optuna.files import SPACE_FILE
from moe_optuna.triad import Triad

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage

    from moe_optuna.samplers import TriadSampler
    from moe_optuna.space import Phase, SearchSpace
    from moe_optuna.training import Recipe

__all__ = ["Studies", "refuse_others"]

FORMAT = 1


def refuse_others(storage: BaseStorage | None, space: SearchSpace, out: Path, *, shared: bool) -> None:
    """A folder is of one search, and so is its journal; a `shared` storage may hold others, and ``None``
    is a journal that has yet to be made.

    Raises:
        InputError: Where the folder has the files of another search, or of one that another storage holds.
    """
    from moe_optuna.space import SearchSpace

    names = {name.split("/")[0] for name in optuna.get_all_study_names(storage)} if storage is not None else set()
    if not shared and (others := names - {space.name}):
        raise InputError(f"holds the search of {', '.join(sorted(others))}; expected another folder", where=out)
    if (out / "runs.csv").is_file() and space.name not in names:
        raise InputError(
            "holds the runs of a search that is not in this storage; expected its --storage (none where the folder has"
            " a journal.log), or another folder",
            where=out,
        )
    kept = out / SPACE_FILE
    if kept.is_file() and (before := SearchSpace.load(kept)).to_dict() != space.to_dict():
        of = f"another space that is also called {space.name!r}" if before.name == space.name else f"{before.name}"
        raise InputError(f"holds a search of {of}; expected the same space, or another folder", where=out)


@dataclass
class Studies:
    """The studies that a search has opened, in the order of the ladder for each phase.

    Attributes:
        space, storage, seed: The search's.
        out: Its folder, for messages.
        recipe: What all of its trainings share.
        text: What it trains on, with the text's hash as ``content``.
        opened: By phase.
    """

    space: SearchSpace
    storage: BaseStorage
    seed: int
    out: Path
    recipe: Recipe
    text: dict[str, Any]
    opened: dict[int, list[Study]] = field(default_factory=lambda: {0: [], 1: [], 2: []})

    @property
    def names(self) -> tuple[str, ...]:
        """Of all, by phase, then by budget."""
        return tuple(study.study_name for studies in self.opened.values() for study in studies)

    def open(self, phase: Phase, attributes: dict[str, Any]) -> tuple[Study, TriadSampler]:
        """The study of a phase, new or as an earlier run left it; attributes that it has stay as they are.

        The same phase at the smaller budgets is the sampler's parents; everything so far is the pruner's.

        Raises:
            InputError: Where it is not of this search.
        """
        from moe_optuna.pruners import BandPruner
        from moe_optuna.samplers import TriadSampler

        name, parents = phase.study_name(self.space.name), tuple(self.opened[phase.number])
        sampler = TriadSampler(phase, parents=parents, seed=zlib.crc32(f"{self.seed}/{name}".encode()))
        pruner = BandPruner(parents=[study for studies in self.opened.values() for study in studies])
        study = optuna.create_study(
            storage=self.storage, study_name=name, sampler=sampler, pruner=pruner, load_if_exists=True
        )
        rule = self._rule(phase)
        self._check(study, rule)
        wanted = {
            "text": self.text,
            "training": rule,
            "phase": phase.number,
            "compute": phase.compute,
            "space": json.dumps(self.space.to_dict()),
            "seed": self.seed,
            "parents": [parent.study_name for parent in parents],
            "law_version": FORMAT,
            **attributes,
        }
        known = study.user_attrs
        for key, value in wanted.items():
            # The rule may be another as long as nothing was trained.
            if key not in known or (key == "training" and known[key] != value):
                study.set_user_attr(key, value)
        self.opened[phase.number].append(study)
        return study, sampler

    def recorded(self, phase: int, compute: float, key: str) -> Any:
        """An attribute of a study that an earlier run began, ``None`` without: what it was held to does not move with
        later trials."""
        from moe_optuna.space import study_name

        name = study_name(self.space.name, compute, phase)
        with contextlib.suppress(KeyError):
            return optuna.load_study(storage=self.storage, study_name=name).user_attrs.get(key)
        return None

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """A study that somebody deletes meanwhile, as in a dashboard, as one line."""
        try:
            yield
        except KeyError as error:
            left = {(study._study_id, study.study_name) for study in self.storage.get_all_studies()}
            for study in (study for studies in self.opened.values() for study in studies):
                if (study._study_id, study.study_name) not in left:
                    raise InputError(
                        "was deleted while the search ran; the same command makes it again", where=study.study_name
                    ) from error
            raise

    def locked(self, compute: float) -> Triad | None:
        """The triad that phase 2 was locked to by an earlier run."""
        text = self.recorded(2, compute, "triad")
        return None if text is None else Triad.from_dict(json.loads(text))

    def _rule(self, phase: Phase) -> dict[str, Any]:
        """The recipe, and what becomes of it for the phase's first architecture: another version of the rule is seen by
        the rates that it sets. To six digits, since processors differ in the last."""
        from moe_optuna.training.rules import hyperparameters

        first = phase.lattice[0]
        hyper = hyperparameters(first, compute=phase.compute, tokens=phase.tokens(first), recipe=self.recipe)
        return {**self.recipe.to_dict(), **{name: float(f"{value:.6g}") for name, value in asdict(hyper).items()}}

    def _check(self, study: Study, rule: dict[str, Any]) -> None:
        known = study.user_attrs
        if "space" not in known and study.get_trials(deepcopy=False):
            raise InputError(
                f"holds a study {study.study_name!r} that is not a search's; expected another folder or storage",
                where=self.out,
            )
        if known.get("space", text := json.dumps(self.space.to_dict())) != text:
            raise InputError(
                f"holds a search of another space that is also called {self.space.name!r}; expected the same space,"
                " another name or another folder",
                where=self.out,
            )
        if known.get("seed", self.seed) != self.seed:
            raise InputError(
                f"{self.seed}, expected {known['seed']}, with which this search began, or another folder",
                where="--seed",
            )
        if (began := known.get("text", self.text)["content"]) != (found := self.text["content"]):
            raise InputError(
                f"sha256 {found[:12]}, expected {began[:12]}, with which this search began: the text has changed;"
                " expected the same text, or another folder",
                where=self.text["data"],
            )
        began = known.get("training", {})
        if began != rule and study.get_trials(deepcopy=False):
            other = ", ".join(sorted(name for name in began | rule if began.get(name) != rule.get(name)))
            raise InputError(
                f"holds trainings by another rule, which differs in {other}; expected the version of moe-optuna with"
                " which this search began, or another folder",
                where=self.out,
            )
