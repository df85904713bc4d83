"""The state of a run: what its increments read and change, begun afresh or from a checkpoint."""

import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.allocation.debt import Debt
from pruning.allocation.shapes import shape_num_parameters
from pruning.checkpoint import load_checkpoint, restore_optimizer
from pruning.data.corpus import Corpus
from pruning.data.mixture import MixtureSampler
from pruning.errors import InvalidData
from pruning.events import Emit, EvaluationFinished, EvaluationStage, RunStarted
from pruning.manifest import Lineage, Measurement
from pruning.methods.increments import Increment, plan_increments, resolve_target
from pruning.models.biases import add_biases
from pruning.models.distillation import freeze
from pruning.models.geometry import (
    Geometry,
    count_parameters,
    count_prunable_parameters,
    geometry_of,
    layer_widths,
    unpruned_plan,
)
from pruning.models.load import load_base_model
from pruning.models.loss import product_dtype
from pruning.models.support import check_supported
from pruning.plan import PruningPlan
from pruning.ranks import Ranks
from pruning.recipe import HubModel, Recipe
from pruning.training.loop import Progress, TrainingLoop
from pruning.training.optimizer import build_optimizer
from pruning.training.schedule import Schedule

Stop = Callable[[], bool]
_MIN_STEPS = 50
_MAX_AUTOMATIC_BATCH = 8
_PACKAGES = ("espalier", "torch", "transformers", "tokenizers", "safetensors")


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a run begins: at the base model, after the last published increment, or inside one.

    `cut_increment` is the increment whose cut `model` already has, 0 at the base model.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    plan: PruningPlan
    base_num_parameters: int
    base_num_prunable_parameters: int
    lineage: Lineage
    last_increment: int = 0
    last_num_parameters: int | None = None
    cut_increment: int = 0
    teacher: PreTrainedModel | None = None
    measurements: tuple[Measurement, ...] = ()
    data_fingerprint: str | None = None
    state: Mapping[str, Any] = field(default_factory=dict)
    optimizer_tensors: Mapping[str, torch.Tensor] | None = None


def start_from_base(recipe: Recipe) -> Start:
    """Open the recipe's model in fp32.

    Raises:
        UnsupportedModel: its architecture has no part for the recipe's method.
    """
    loaded = load_base_model(recipe.model, dtype=torch.float32)
    check_supported(recipe, loaded.model.config.model_type)
    name = recipe.model.id if isinstance(recipe.model, HubModel) else recipe.model.path
    start = Start(
        model=loaded.model,
        tokenizer=loaded.tokenizer,
        plan=unpruned_plan(loaded.model),
        base_num_parameters=count_parameters(loaded.model),
        base_num_prunable_parameters=count_prunable_parameters(loaded.model),
        lineage=Lineage(model=name, model_revision=loaded.revision, parent_manifest_sha256=None),
    )
    if recipe.compensation == "bias":
        add_biases(start.model)
    return start


def start_from_checkpoint(directory: Path) -> Start:
    """Open a published increment, or one in progress, with everything its training left.

    Raises:
        CheckpointCorrupt: it is incomplete or damaged.
    """
    opened = load_checkpoint(directory)
    manifest = opened.manifest
    published = opened.state["last_increment"] == manifest.increment
    parent = opened.manifest_sha256 if published else manifest.lineage.parent_manifest_sha256
    return Start(
        model=opened.model,
        tokenizer=opened.tokenizer,
        plan=manifest.plan,
        base_num_parameters=manifest.base_num_parameters,
        base_num_prunable_parameters=opened.state["base_num_prunable_parameters"],
        lineage=manifest.lineage.model_copy(update={"parent_manifest_sha256": parent}),
        last_increment=opened.state["last_increment"],
        last_num_parameters=opened.state["last_num_parameters"],
        cut_increment=manifest.increment,
        teacher=opened.teacher,
        measurements=manifest.measurements,
        data_fingerprint=manifest.data_fingerprint,
        state=opened.state,
        optimizer_tensors=opened.optimizer_tensors,
    )


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
    increments: tuple[Increment, ...]
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
    increments = _increments(recipe, start, corpus)
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
        increments=increments,
        loop=_loop(recipe, start, corpus, increments, emit, ranks, device),
        base_num_parameters=start.base_num_parameters,
        base_num_prunable_parameters=start.base_num_prunable_parameters,
        lineage=start.lineage,
        last_increment=start.last_increment,
        last_num_parameters=start.last_num_parameters or count_parameters(model),
        cut_increment=start.cut_increment,
        measurements=list(start.measurements),
        versions=_versions(),
    )


def _increments(recipe: Recipe, start: Start, corpus: Corpus) -> tuple[Increment, ...]:
    geometry = geometry_of(start.model, start.plan)
    targets = [
        resolve_target(
            target,
            num_parameters=start.base_num_parameters,
            num_prunable_parameters=start.base_num_prunable_parameters,
            dtype=recipe.output.dtype,
            shaped=lambda shape: shape_num_parameters(shape, start.plan, geometry),
        )
        for target in recipe.targets
    ]
    return plan_increments(
        num_parameters=start.base_num_parameters,
        targets=targets,
        total_steps=_total_steps(recipe, corpus),
        schedule=recipe.schedule,
    )


def _total_steps(recipe: Recipe, corpus: Corpus) -> int:
    """Optimizer steps over the run's tokens."""
    if recipe.recovery.kind == "none":
        return 0
    num_sequences = _num_sequences(recipe, corpus)
    return max(1, num_sequences // batch_sequences(recipe, corpus)) if num_sequences else 0


def batch_sequences(recipe: Recipe, corpus: Corpus) -> int:
    """Sequences per optimizer step: as asked, else 8, or fewer where that leaves too few steps.

    In a short run the number of steps limits recovery, not the noise of their gradients.
    """
    if recipe.recovery.batch_sequences is not None:
        return recipe.recovery.batch_sequences
    affordable = _num_sequences(recipe, corpus) // _MIN_STEPS
    return max(1, min(_MAX_AUTOMATIC_BATCH, affordable))


def _num_sequences(recipe: Recipe, corpus: Corpus) -> int:
    """Training sequences of the run; by default one pass over the corpus."""
    length = recipe.recovery.sequence_length
    if recipe.schedule.num_tokens is not None:
        return recipe.schedule.num_tokens // length
    return sum(len(domain.train) // length for domain in corpus.domains)


def _loop(
    recipe: Recipe,
    start: Start,
    corpus: Corpus,
    increments: tuple[Increment, ...],
    emit: Emit,
    ranks: Ranks,
    device: torch.device,
) -> TrainingLoop:
    sampler = MixtureSampler(
        corpus.domains, sequence_length=recipe.recovery.sequence_length, seed=recipe.seed
    )
    optimizer = build_optimizer(start.model, recipe.recovery)
    if start.optimizer_tensors is not None:
        sampler.load_state(start.state["sampler"])
        restore_optimizer(optimizer, start.model, start.optimizer_tensors)
    return TrainingLoop(
        model=start.model,
        optimizer=optimizer,
        sampler=sampler,
        recovery=recipe.recovery,
        batch_sequences=batch_sequences(recipe, corpus),
        schedule=Schedule(
            learning_rate=recipe.recovery.learning_rate,
            total_steps=increments[-1].until_step,
            last_cut_step=increments[-1].pruning_until_step,
        ),
        progress=Progress(**start.state.get("progress", {})),
        emit=emit,
        teacher=_teacher(recipe, start, device),
        ranks=ranks,
        separator=_separator(recipe, start),
    )


def _separator(recipe: Recipe, start: Start) -> int | None:
    """The token that closes a document, where training is to keep documents apart."""
    return start.tokenizer.eos_token_id if recipe.recovery.separate_documents else None


def _teacher(recipe: Recipe, start: Start, device: torch.device) -> PreTrainedModel | None:
    """The model to distil from until the next cut."""
    teacher = start.teacher or _base_teacher(recipe, start.lineage)
    return teacher.to(device) if teacher is not None else None


def _base_teacher(recipe: Recipe, lineage: Lineage) -> PreTrainedModel | None:
    """The base model to distil from, opened anew: the run's own copy of it is about to be cut."""
    distillation = recipe.recovery.distillation
    if distillation is None or distillation.teacher != "base" or recipe.recovery.kind == "none":
        return None
    source = recipe.model
    if isinstance(source, HubModel) and lineage.model_revision is not None:
        source = source.model_copy(update={"revision": lineage.model_revision})
    dtype = product_dtype(recipe.recovery.precision)
    return freeze(load_base_model(source, dtype=dtype).model, dtype)


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"  # A source tree that was never installed.
    return versions
