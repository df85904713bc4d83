"""The next plan of a run, from what was measured."""

from pruning.allocation.allocate import allocate
from pruning.allocation.debt import Debt
from pruning.methods.run import Run
from pruning.plan import PruningPlan
from pruning.scores import Scores


def decide(run: Run, scores: Scores, target_num_parameters: int) -> tuple[PruningPlan, Debt]:
    """The next plan and the debt it leaves; changes nothing.

    Raises:
        TargetUnreachable: the constraints leave more than the target.
    """
    return allocate(
        scores,
        run.plan,
        run.geometry,
        target_num_parameters=target_num_parameters,
        allocation=run.recipe.allocation,
        axes=run.recipe.axes,
        shape=run.recipe.targets[-1].shape,
        debt=run.debt,
    )
