"""Checkpoints: a Hugging Face directory with its manifest, and beside it what exact resuming needs.

increment-0003/
    config.json, generation_config.json, model.safetensors (output.dtype), tokenizer files
    training_state/weights.safetensors      fp32 master weights
    training_state/optimizer.safetensors    moments and the random generator
    training_state/state.json               everything else, as JSON
    manifest.json                           written last; the directory is then renamed into place

partial-0004/
    the same, of an increment whose training goes on; never published, gone when the increment is
    teacher/                                the model distilled from, where it is not the base model
"""

import copy
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.errors import CheckpointCorrupt, InvalidModel
from pruning.manifest import (
    MANIFEST_NAME,
    TRAINING_STATE,
    FileDigest,
    Manifest,
    digest_file,
    read_manifest,
    write_manifest,
)
from pruning.models.distillation import freeze
from pruning.models.load import load_base_model
from pruning.ranks import whole
from pruning.recipe import Recipe
from pruning.recipe_parts.model import PathModel

_WEIGHTS = "model.safetensors"
_MASTER_WEIGHTS = "weights.safetensors"
_OPTIMIZER = "optimizer.safetensors"
_STATE = "state.json"
_TEACHER = "teacher"
_RANDOM_STATE = "random_state"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint that lies complete on disk."""

    directory: Path
    manifest: Manifest
    manifest_sha256: str


@dataclass(frozen=True, kw_only=True)
class Tensors:
    """What training is about: fp32 master weights by name, the optimizer's moments of each, and the
    state of torch's random generator.

    Whole, however many ranks hold them, so that any other number can go on from them.
    """

    weights: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    random_state: Tensor

    @property
    def num_bytes(self) -> int:
        """Of all of them."""
        return sum(t.nbytes for part in (self.weights, self.moments) for t in part.values())

    def copied(self) -> "Tensors":
        """In main memory, for training to go on meanwhile."""
        weights, moments = (
            {name: tensor.to("cpu", copy=True) for name, tensor in part.items()}
            for part in (self.weights, self.moments)
        )
        return Tensors(weights=weights, moments=moments, random_state=self.random_state)


@dataclass(frozen=True, kw_only=True)
class Resumable:
    """A checkpoint opened to go on from: `model` holds the fp32 master weights."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    manifest: Manifest
    manifest_sha256: str
    state: Mapping[str, Any]
    optimizer_tensors: Mapping[str, Tensor]
    teacher: PreTrainedModel | None


def increment_directory(increment: int) -> str:
    """The name of an increment's directory."""
    return f"increment-{increment:04d}"


def partial_directory(increment: int) -> str:
    """The name of the directory that keeps an increment in progress."""
    return f"partial-{increment:04d}"


def training_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, *, keep: bool = True
) -> Tensors:
    """Collect what a checkpoint holds; all ranks do it together, and those that `keep` keep it."""
    weights = dict(_kept(_weights(model), keep))
    moments = {
        f"{kind}.{name}": moment
        for name, parameter in model.named_parameters()
        for kind, moment in _kept(optimizer.state.get(parameter, {}), keep)
    }
    return Tensors(weights=weights, moments=moments, random_state=torch.get_rng_state())


def _kept(tensors: Mapping[str, Tensor], keep: bool) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        full = whole(tensor)
        if keep:
            yield name, full


def save_checkpoint(
    out_dir: Path,
    manifest: Manifest,
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tensors: Tensors,
    averages: Mapping[str, Tensor],
    state: Mapping[str, Any],
    derive: Callable[[Path], None] | None = None,
) -> Saved:
    """Write one increment's checkpoint; `files` and `num_bytes` of the manifest are filled in here.

    `averages` are published in place of the weights that they name. `derive` may add files that
    follow from the others, such as exports and the model card.
    An interrupted call leaves only a directory that begins with a dot, which the next call removes.
    """
    directory = out_dir / increment_directory(manifest.increment)
    unfinished = _begin(directory)
    published = {**tensors.weights, **averages}
    _save_model(model, published, unfinished, getattr(torch, manifest.dtype))
    tokenizer.save_pretrained(unfinished)
    _save_training_state(tensors, state, unfinished / TRAINING_STATE)
    if derive is not None:
        derive(unfinished)
    return _complete(unfinished, directory, manifest)


def save_partial(
    out_dir: Path,
    manifest: Manifest,
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tensors: Tensors,
    state: Mapping[str, Any],
    teacher: PreTrainedModel | None,
) -> Path:
    """Keep an increment in progress, in place of what was kept of it before.

    The teacher is one that cannot be opened anew, as the base model can.
    """
    directory = out_dir / partial_directory(manifest.increment)
    unfinished = _begin(directory)
    _save_model(model, tensors.weights, unfinished, getattr(torch, manifest.dtype))
    tokenizer.save_pretrained(unfinished)
    if teacher is not None:
        (unfinished / _TEACHER).mkdir()
        _save_model(teacher, _weights(teacher), unfinished / _TEACHER, teacher.dtype)
        tokenizer.save_pretrained(unfinished / _TEACHER)
    _save_training_state(tensors, state, unfinished / TRAINING_STATE)
    return _complete(unfinished, directory, manifest).directory


def discard_partial(out_dir: Path, increment: int) -> None:
    """Drop what was kept of an increment that is now whole."""
    shutil.rmtree(out_dir / partial_directory(increment), ignore_errors=True)


def newest_state(published: Path, out_dir: Path, recipe: Recipe) -> Path:
    """Where to go on: an increment in progress in `out_dir` that followed this one, or this one.

    Raises:
        CheckpointCorrupt: `published` has no manifest.
    """
    head = read_manifest(published)
    partial = out_dir / partial_directory(head.increment + 1)
    try:
        found = read_manifest(partial)
        follows = digest_file(published / MANIFEST_NAME).sha256
        if found.lineage.parent_manifest_sha256 == follows and found.recipe == recipe:
            found.verify(partial)
            return partial
    except CheckpointCorrupt as error:
        if partial.exists():
            logger.warning("%s is not used: %s", partial.name, error)
    return published


def _begin(directory: Path) -> Path:
    unfinished = directory.with_name(f".{directory.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / TRAINING_STATE).mkdir(parents=True)
    return unfinished


def _complete(unfinished: Path, directory: Path, manifest: Manifest) -> Saved:
    files = _digests(unfinished)
    complete = manifest.model_copy(update={"files": files, "num_bytes": files[_WEIGHTS].num_bytes})
    manifest_sha256 = write_manifest(complete, unfinished)
    shutil.rmtree(directory, ignore_errors=True)
    unfinished.replace(directory)
    return Saved(directory=directory, manifest=complete, manifest_sha256=manifest_sha256)


def _save_model(
    model: PreTrainedModel, weights: Mapping[str, Tensor], directory: Path, dtype: torch.dtype
) -> None:
    # Not save_pretrained: it would write the dtype of the fp32 master weights into the config.
    config = copy.deepcopy(model.config)
    config.dtype = dtype
    config.architectures = [type(model).__name__]
    config.save_pretrained(directory)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(directory)
    rounded = {name: tensor.to(dtype).contiguous() for name, tensor in weights.items()}
    save_file(rounded, directory / _WEIGHTS, metadata={"format": "pt"})
    # safetensors leaves its files readable by their owner alone, unlike everything beside them.
    (directory / _WEIGHTS).chmod(0o644)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, tied ones once under their first name."""
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - {
        name for name, _ in model.named_parameters()
    }
    return {name: t.detach() for name, t in model.state_dict().items() if name not in tied}


def _save_training_state(tensors: Tensors, state: Mapping[str, Any], directory: Path) -> None:
    weights = {name: tensor.contiguous() for name, tensor in tensors.weights.items()}
    save_file(weights, directory / _MASTER_WEIGHTS)
    moments = {name: tensor.contiguous() for name, tensor in tensors.moments.items()}
    save_file(moments | {_RANDOM_STATE: tensors.random_state}, directory / _OPTIMIZER)
    (directory / _STATE).write_text(json.dumps(state), encoding="utf-8")


def _digests(directory: Path) -> dict[str, FileDigest]:
    return {
        path.relative_to(directory).as_posix(): digest_file(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def load_checkpoint(directory: Path) -> Resumable:
    """Verify and open a checkpoint to resume from.

    Raises:
        CheckpointCorrupt: a file is missing, differs from the manifest, or does not fit the others.
    """
    manifest = read_manifest(directory)
    manifest.verify(directory)
    training_state = directory / TRAINING_STATE
    try:
        loaded = load_base_model(PathModel(path=str(directory)), dtype=torch.float32)
        _load_weights(loaded.model, load_file(training_state / _MASTER_WEIGHTS))
        return Resumable(
            model=loaded.model,
            tokenizer=loaded.tokenizer,
            manifest=manifest,
            manifest_sha256=digest_file(directory / MANIFEST_NAME).sha256,
            state=json.loads((training_state / _STATE).read_text(encoding="utf-8")),
            optimizer_tensors=load_file(training_state / _OPTIMIZER),
            teacher=_load_teacher(directory / _TEACHER),
        )
    except (OSError, ValueError, SafetensorError, InvalidModel) as error:
        raise CheckpointCorrupt(f"{directory}: {error}") from error


def _load_teacher(directory: Path) -> PreTrainedModel | None:
    if not directory.is_dir():
        return None
    dtype = getattr(torch, json.loads((directory / "config.json").read_bytes())["dtype"])
    return freeze(load_base_model(PathModel(path=str(directory)), dtype=dtype).model, dtype)


@torch.no_grad()
def _load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    into = _weights(model)
    if set(into) != set(weights):
        raise ValueError(f"{_MASTER_WEIGHTS} does not name the model's parameters")
    for name, tensor in weights.items():
        if into[name].shape != tensor.shape:
            raise ValueError(
                f"{name} is {list(tensor.shape)}, the model has {list(into[name].shape)}"
            )
        into[name].copy_(tensor)


def restore_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """Give a fresh optimizer its moments back, and torch its random generator's state."""
    torch.set_rng_state(tensors[_RANDOM_STATE])
    names = dict(model.named_parameters())
    for key, tensor in tensors.items():
        kind, _, name = key.partition(".")
        if name in names:
            parameter = names[name]
            optimizer.state[parameter][kind] = tensor.to(parameter.device)
