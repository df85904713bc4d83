"""The state of a run: what its increments read and change, begun afresh or from a checkpoint."""

import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.allocation.debt import Debt
from pruning.allocation.shapes import shape_num_parameters
from pruning.data.corpus import Corpus
from pruning.errors import InvalidData
from pruning.events import (
    Emit,
    EvaluationFinished,
    EvaluationStage,
    Phase,
    PhaseChanged,
    RunStarted,
)
from pruning.manifest import Lineage, Measurement
from pruning.memory import give_back_memory
from pruning.methods.increments import (
    Increment,
    plan_increments,
    repaired_from,
    resolve_target,
    stream_share,
)
from pruning.methods.loops import build_loop, total_steps
from pruning.methods.start import Start
from pruning.models.geometry import (
    Geometry,
    count_parameters,
    geometry_of,
    layer_widths,
)
from pruning.models.hidden import is_tied
from pruning.plan import PruningPlan
from pruning.ranks import Ranks
from pruning.recipe import Recipe
from pruning.recipe_parts.calibration import CalibrationSize
from pruning.training.loop import TrainingLoop

Stop = Callable[[], bool]
_PACKAGES = ("espalier", "torch", "transformers", "tokenizers", "safetensors")


@dataclass(kw_only=True)
class Run:
    """A run in progress: the model and its plan move together, `loop` lives through all cuts.

    `last_increment` is the last one published, 0 before the first; `last_num_parameters` its size;
    `cut_increment` the one whose cut `model` has.
    """

    recipe: Recipe
    out_dir: Path
    emit: Emit
    stop: Stop
    device: torch.device
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    corpus: Corpus
    geometry: Geometry
    plan: PruningPlan
    debt: Debt | None
    targets: tuple[int, ...]
    """The sizes that the recipe's targets meant for the base model."""
    increments: tuple[Increment, ...]
    calibration: CalibrationSize
    loop: TrainingLoop
    base_num_parameters: int
    base_num_prunable_parameters: int
    lineage: Lineage
    last_increment: int
    last_num_parameters: int
    cut_increment: int
    measurements: list[Measurement]
    versions: dict[str, str]

    @property
    def ranks(self) -> Ranks:
        """This process among those that share the run."""
        return self.loop.ranks

    def asked_to_stop(self) -> bool:
        """Whether any rank was asked to; all of them ask at the same time."""
        return self.ranks.any(self.stop())

    @property
    def num_tokens(self) -> int:
        """Training tokens seen so far."""
        return self.loop.progress.num_tokens

    @property
    def target_num_parameters(self) -> int:
        """The smallest size this run goes to."""
        return self.increments[-1].target_num_parameters

    def enter(self, phase: Phase, increment: int) -> None:
        """Report what the run does from now on; it needs another amount of memory."""
        give_back_memory()
        self.emit(PhaseChanged(phase=phase, increment=increment))

    def record(self, measurement: Measurement) -> None:
        """Keep a measurement for the manifests and report it."""
        self.measurements.append(measurement)
        values = measurement.model_dump()
        self.emit(EvaluationFinished(num_tokens=self.num_tokens, **values))

    def perplexity(self, stage: EvaluationStage, increment: int) -> float:
        """A perplexity measured earlier in this run."""
        return next(
            m.value
            for m in self.measurements
            if (m.suite, m.stage, m.increment) == ("perplexity", stage, increment)
        )

    def training_state(self) -> dict[str, Any]:
        """What a checkpoint stores beside weights and moments, as JSON."""
        return {
            "last_increment": self.last_increment,
            "last_num_parameters": self.last_num_parameters,
            "base_num_prunable_parameters": self.base_num_prunable_parameters,
            "targets": self.targets,
            "progress": asdict(self.loop.progress),
            "sampler": self.loop.sampler.state(),
            "debt": self.debt.model_dump(mode="json") if self.debt else None,
        }

    def started(self) -> RunStarted:
        """The event that says what the recipe became."""
        return RunStarted(
            num_parameters=self.base_num_parameters,
            num_prunable_parameters=self.base_num_prunable_parameters,
            target_num_parameters=self.target_num_parameters,
            num_increments=len(self.increments),
            num_tokens=self.increments[-1].until_step * self.loop.tokens_per_step,
            num_calibration_samples=self.calibration.num_samples,
            calibration_sequence_length=self.calibration.sequence_length,
            first_increment=self.last_increment + 1,
            model_revision=self.lineage.model_revision,
            model_type=self.model.config.model_type,
            data_fingerprint=self.corpus.fingerprint,
            widths=layer_widths(self.model),
            versions=self.versions,
            device=str(self.device),
        )


def build_run(
    recipe: Recipe,
    start: Start,
    corpus: Corpus,
    *,
    out_dir: Path,
    emit: Emit,
    stop: Stop,
    ranks: Ranks,
    device: torch.device,
) -> Run:
    """Lay out the increments; put model, optimizer, sampler and schedule where `start` is.

    Raises:
        TargetUnreachable: the target is above the model's size.
        InvalidData: the corpus is too small, or not the one the checkpoint was trained on.
    """
    if start.data_fingerprint not in (None, corpus.fingerprint):
        raise InvalidData("the text changed since the checkpoint was made", param="data")
    model = start.model.to(device)
    targets = tuple(start.state["targets"]) if start.state else _targets(recipe, start)
    increments = plan_increments(
        num_parameters=start.base_num_parameters,
        targets=targets,
        total_steps=total_steps(recipe, corpus),
        schedule=recipe.schedule,
        repaired_from=repaired_from(
            recipe,
            num_parameters=start.base_num_parameters,
            num_prunable_parameters=start.base_num_prunable_parameters,
        ),
    )
    loop = build_loop(recipe, start, corpus, increments, emit, ranks, device, out_dir)
    return Run(
        recipe=recipe,
        out_dir=out_dir,
        emit=emit,
        stop=stop,
        device=device,
        model=model,
        tokenizer=start.tokenizer,
        corpus=corpus,
        geometry=geometry_of(model, start.plan),
        plan=start.plan,
        debt=Debt.model_validate(start.state["debt"]) if start.state else None,
        targets=targets,
        increments=increments,
        calibration=recipe.calibration_size(
            num_tokens=increments[-1].until_step * loop.tokens_per_step,
            num_increments=len(increments),
            longest=max(len(domain.train) for domain in corpus.domains),
        ),
        loop=loop,
        base_num_parameters=start.base_num_parameters,
        base_num_prunable_parameters=start.base_num_prunable_parameters,
        lineage=start.lineage,
        last_increment=start.last_increment,
        last_num_parameters=start.last_num_parameters or count_parameters(model),
        cut_increment=start.cut_increment,
        measurements=list(start.measurements),
        versions=_versions(),
    )


def _targets(recipe: Recipe, start: Start) -> tuple[int, ...]:
    geometry, model = geometry_of(start.model, start.plan), start.model

    def outside(sparsity: float) -> int:
        shortcuts = 2 * len(geometry.layer_costs) * geometry.hidden_size**2
        by_block = recipe.importance.rotation == "per_block"
        share = by_block * shortcuts / start.base_num_prunable_parameters
        width = round(geometry.hidden_size * stream_share(recipe.axes, sparsity, share))
        narrow = geometry.narrowed(start.plan.model_copy(update={"hidden": tuple(range(width))}))
        unties = recipe.importance.kind == "pca_energy" and sparsity > 0 and is_tied(model)
        head: int = model.get_input_embeddings().get_parameter("weight").shape[0] * width
        return narrow.num_fixed_parameters + unties * head

    return tuple(
        resolve_target(
            target,
            num_parameters=start.base_num_parameters,
            num_prunable_parameters=start.base_num_prunable_parameters,
            dtype=recipe.output.dtype,
            shaped=lambda shape: shape_num_parameters(shape, start.plan, geometry),
            outside=outside,
        )
        for target in recipe.targets
    )


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"  # A source tree that was never installed.
    return versions
