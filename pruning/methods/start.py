"""Where a run begins: the base model, or a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.checkpoint import load_checkpoint
from pruning.manifest import Lineage, Measurement
from pruning.models.biases import add_biases
from pruning.models.geometry import count_parameters, count_prunable_parameters, unpruned_plan
from pruning.models.load import load_base_model
from pruning.models.support import check_supported
from pruning.plan import PruningPlan
from pruning.recipe import Recipe
from pruning.recipe_parts.method import WITH_BIASES
from pruning.recipe_parts.model import HubModel


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
    _leave_file(loaded.model)
    config = loaded.model.config
    carries_stream = getattr(config, "carries_stream", False)
    check_supported(recipe, config.model_type, carries_stream=carries_stream)
    name = recipe.model.id if isinstance(recipe.model, HubModel) else recipe.model.path
    start = Start(
        model=loaded.model,
        tokenizer=loaded.tokenizer,
        plan=unpruned_plan(loaded.model),
        base_num_parameters=count_parameters(loaded.model),
        base_num_prunable_parameters=count_prunable_parameters(loaded.model),
        lineage=Lineage(model=name, model_revision=loaded.revision, parent_manifest_sha256=None),
    )
    if recipe.compensation in WITH_BIASES:
        add_biases(start.model)
    return start


def open_base(recipe: Recipe, lineage: Lineage, *, dtype: torch.dtype) -> PreTrainedModel:
    """The base model as it was when the run began, for what is compared with it later."""
    source = recipe.model
    if isinstance(source, HubModel) and lineage.model_revision is not None:
        source = source.model_copy(update={"revision": lineage.model_revision})
    return load_base_model(source, dtype=dtype).model


def _leave_file(model: nn.Module) -> None:
    """Copy weights that are pages of their file: those stay, all of them, while one is in use."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()


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
