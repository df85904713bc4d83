"""What a checkpoint brings along beside the model: exports, their speed, licence and model card."""

from pathlib import Path

from pruning.events import EvaluationStage, RunWarning
from pruning.export.card import CARD_NAME, model_card
from pruning.export.export import Exported, export_all
from pruning.export.licence import copy_texts, read_licence
from pruning.export.speed import EngineSpeed
from pruning.manifest import Manifest, Measurement
from pruning.methods.run import Run


def derive(run: Run, manifest: Manifest, directory: Path) -> None:
    """Add to an unpublished checkpoint what follows from it. A refused export costs no model."""
    wanted = run.recipe.output.exports if manifest.final else ()
    exported, refusals = export_all(
        directory, wanted, dense=run.recipe.model if run.recipe.evaluation.speed else None
    )
    for refusal in refusals:
        run.emit(RunWarning(code=refusal.code, message=refusal.message))
    for export in exported:
        _record_speed(run, export, manifest.increment)
    licence = read_licence(run.recipe.model, manifest.lineage.model_revision)
    copy_texts(licence, directory)
    card = model_card(manifest, exported, licence)
    (directory / CARD_NAME).write_text(card, encoding="utf-8")


def _record_speed(run: Run, export: Exported, increment: int) -> None:
    """Among the run's measurements, so that whoever reads those finds it too."""
    if export.speed is None:
        return
    protocol = {**export.speed.protocol, "engine": export.records[-1].engine_version}
    measured: tuple[tuple[EvaluationStage, int, EngineSpeed], ...] = (
        ("base", 0, export.speed.dense),
        ("recovered", increment, export.speed.export),
    )
    for stage, at, speed in measured:
        for metric, value in speed.model_dump(exclude_none=True).items():
            run.record(
                Measurement(
                    stage=stage,
                    increment=at,
                    suite=f"speed:{export.format}",
                    metric=metric,
                    value=value,
                    num_samples=export.speed.num_samples,
                    protocol=protocol,
                )
            )
