"""Opening a base model, from a hub, a directory or a GGUF file, never running code it brings."""

import errno
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

# Lets transformers open a model that an earlier run has already pruned layer by layer.
import espalier.loading  # noqa: F401
from pruning.errors import HubUnavailable, InvalidModel, ModelGated, ModelNotFound
from pruning.models.adapter import adapter_for
from pruning.recipe_parts.model import HubModel, ModelSource, PathModel

_SMALL_FILES = ("*.json", "*.model", "*.jinja", "*.txt")
_WEIGHT_FILES = ("*.safetensors",)
# What transformers raises for a configuration or tokenizer it cannot use.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError)


@dataclass(frozen=True)
class LoadedModel:
    """A base model in evaluation mode, its tokenizer, and its commit on the hub (None: a path)."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    revision: str | None


def load_base_model(source: ModelSource, *, dtype: torch.dtype) -> LoadedModel:
    """Open the model that a recipe names, on the CPU.

    Raises:
        ModelNotFound: no such repository, revision, directory or file.
        ModelGated: this reader may not open the repository.
        HubUnavailable: the hub does not answer.
        UnsupportedModel: no adapter for its architecture; checked before its weights are read.
        InvalidModel: no safetensors, quantised, needs its own code, or cannot be read.
    """
    if isinstance(source, PathModel):
        _check_directory(source)
        return _open(source.path, dtype=dtype, gguf_file=source.gguf_file)
    return _open_snapshot(source, dtype=dtype)


def _open_snapshot(source: HubModel, *, dtype: torch.dtype) -> LoadedModel:
    """Pin the revision to a commit, look at its configuration, and only then fetch its weights."""
    snapshot = _fetch(source, source.revision, _SMALL_FILES)
    commit = snapshot.name
    _read_config(str(snapshot), None)
    weights = _fetch(source, commit, _WEIGHT_FILES)
    if not any(weights.glob("*.safetensors")):
        raise _no_safetensors(source.id, "model.id")
    return replace(_open(str(snapshot), dtype=dtype, gguf_file=None), revision=commit)


def _fetch(source: HubModel, revision: str, patterns: tuple[str, ...]) -> Path:
    try:
        return Path(
            snapshot_download(
                source.id,
                revision=revision,
                allow_patterns=list(patterns),
                ignore_patterns=["*/*"],
            )
        )
    except RevisionNotFoundError as error:
        raise ModelNotFound(
            f"{source.id} has no revision {revision!r}", param="model.revision"
        ) from error
    except GatedRepoError as error:
        raise ModelGated(
            f"{source.id} is gated, and not for this reader",
            param="model.id",
            hint="accept its conditions on the hub, and name a credential in model.credential",
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelNotFound(
            f"no model {source.id!r} on the hub, or it is private", param="model.id"
        ) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise HubUnavailable(
            f"{source.id}: cannot be fetched from the hub: {error}", param="model.id"
        ) from error


def _check_directory(source: PathModel) -> None:
    directory = Path(source.path)
    if not directory.is_dir():
        raise ModelNotFound(f"{directory}: no such directory", param="model.path")
    if source.gguf_file is not None:
        if not (directory / source.gguf_file).is_file():
            raise ModelNotFound(
                f"{directory / source.gguf_file}: no such file", param="model.gguf_file"
            )
    elif not (directory / "config.json").is_file():
        raise ModelNotFound(
            f"{directory}: has no config.json",
            param="model.path",
            hint="a Hugging Face model directory, or a directory and its gguf_file",
        )
    elif not any(directory.glob("*.safetensors")):
        raise _no_safetensors(str(directory), "model.path")


def _no_safetensors(where: str, param: str) -> InvalidModel:
    return InvalidModel(
        f"{where}: has no safetensors weights",
        param=param,
        hint="other formats can run code when opened; convert the weights to safetensors",
    )


def _open(name: str, *, dtype: torch.dtype, gguf_file: str | None) -> LoadedModel:
    _read_config(name, gguf_file)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            name,
            **_safely(gguf_file),
            dtype=dtype,
            use_safetensors=gguf_file is None,
        )
        tokenizer = AutoTokenizer.from_pretrained(name, **_safely(gguf_file))
    except (*_UNREADABLE, RuntimeError, SafetensorError) as error:
        raise InvalidModel(f"{name}: cannot be opened: {error}", param="model") from error
    _forget_gguf(model)
    return LoadedModel(model.eval(), tokenizer, revision=None)


def _read_config(name: str, gguf_file: str | None) -> None:
    """Check, from the configuration alone, that the model can be pruned."""
    try:
        config = AutoConfig.from_pretrained(name, **_safely(gguf_file))
    except _UNREADABLE as error:
        raise InvalidModel(f"{name}: cannot be opened: {error}", param="model") from error
    adapter_for(config)
    if gguf_file is None and getattr(config, "quantization_config", None) is not None:
        raise InvalidModel(
            f"{name}: its weights are quantised",
            param="model",
            hint="give the full-precision model; a GGUF file is dequantised when opened",
        )


def _safely(gguf_file: str | None) -> dict[str, str | bool]:
    """What every opening says: no code from the repository, and which file when it is a GGUF."""
    gguf = {} if gguf_file is None else {"gguf_file": gguf_file}
    return {"trust_remote_code": False, "local_files_only": True, **gguf}


def _forget_gguf(model: PreTrainedModel) -> None:
    """Drop the traces of a dequantised GGUF file, which would make `save_pretrained` refuse."""
    for owner, name in (
        (model.config, "quantization_config"),
        (model, "hf_quantizer"),
        (model, "quantization_method"),
        (model, "is_quantized"),
    ):
        owner.__dict__.pop(name, None)
