"""The manifest of a run's model as it stands."""

from datetime import UTC, datetime

from pruning.manifest import Manifest
from pruning.methods.increments import Increment
from pruning.methods.run import Run
from pruning.models.geometry import count_parameters, layer_widths


def manifest_of(run: Run, increment: Increment, *, final: bool) -> Manifest:
    """All but the files, which are known when they are written."""
    return Manifest(
        increment=increment.number,
        step=run.loop.progress.step,
        num_tokens=run.num_tokens,
        num_parameters=count_parameters(run.model),
        base_num_parameters=run.base_num_parameters,
        target_num_parameters=run.target_num_parameters,
        num_bytes=0,
        dtype=run.recipe.output.dtype,
        final=final,
        outcome="target_reached" if final else None,
        widths=layer_widths(run.model),
        measurements=tuple(run.measurements),
        lineage=run.lineage,
        data_fingerprint=run.corpus.fingerprint,
        recipe=run.recipe,
        plan=run.plan,
        versions=run.versions,
        created_at=datetime.now(UTC),
        files={},
    )
