"""`LightningObjective`: the trials of a search, for a study of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_optuna.errors import InputError, of_kind, whole_number

if TYPE_CHECKING:
    from optuna import Trial

    from moe_optuna.space import Phase
    from moe_optuna.training import Recipe, Report

__all__ = ["LightningObjective"]


class LightningObjective:
    """Suggest an architecture, train it in this process, report on the token grid, prune.

    Example::

        phase = SearchSpace.load("cpu").phase_one(compute=3e11)
        study = optuna.create_study(sampler=TriadSampler(phase, seed=0), pruner=BandPruner())
        study.optimize(LightningObjective(phase), n_trials=40)

    Args:
        phase: What the trials may propose.
        recipe: How they are trained; that of the phase's search space unless given.
        seed: Of trials that carry none of their own in the user attribute `seed`.

    Raises:
        InputError: Where an argument is of another kind, the space's ``[training]`` table is wrong, or its text is not
            there.
    """

    def __init__(self, phase: Phase, *, recipe: Recipe | None = None, seed: int = 0) -> None:
        from moe_optuna.space import Phase
        from moe_optuna.training import Recipe, find_text

        of_kind(phase, Phase, "a phase of a space", where="phase")
        if recipe is not None:
            of_kind(recipe, Recipe, "a Recipe", where="recipe")
        self._phase = phase
        self._recipe = recipe or Recipe.from_table(phase.space.training, where=f"{phase.space.name}: [training]")
        self._seed = whole_number(seed, "seed", least=0)
        find_text(self._recipe)

    def __call__(self, trial: Trial) -> float:
        """The held-out loss of the trial [nats per token].

        Raises:
            optuna.TrialPruned: Where nothing feasible is near, or the study's pruner stopped it.
            moe_optuna.training.TrainingFailure: Where the loss is no longer finite, or memory is short.
        """
        import optuna

        from moe_optuna.training import train

        architecture = self._phase.suggest(trial)
        seed = trial.user_attrs.get("seed")
        if seed is None:
            trial.set_user_attr("seed", seed := self._seed)

        def report(point: Report) -> bool:
            trial.report(point.loss, point.index)
            return not trial.should_prune()

        try:
            result = train(
                architecture,
                compute=self._phase.compute,
                tokens=self._phase.tokens(architecture),
                recipe=self._recipe,
                seed=seed,
                report=report,
            )
        except (KeyboardInterrupt, OSError, InputError):  # not the architecture's doing, as `TriadSampler` should know
            trial.set_user_attr("interrupted", True)
            raise
        trial.set_user_attr("tokens", result.tokens)
        trial.set_user_attr("seconds", result.seconds)
        if result.bits_per_byte is not None:
            trial.set_user_attr("bits_per_byte", result.bits_per_byte)
        if collapsed := result.diagnostics.get("collapsed_routers"):
            trial.set_user_attr("collapsed_routers", collapsed)
        if result.stopped:
            raise optuna.TrialPruned
        return result.loss
