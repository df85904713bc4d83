"""Looking at a model's config.json before a job is taken: on this disk, or on a hub."""

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api.gguf_headers import config_of_gguf
from pruning.errors import InvalidModel, ModelNotFound
from pruning.recipe_parts.model import HubModel, ModelSource, PathModel
from registry.settings import Settings

MAX_BYTES = 1 << 20
_REMEMBERED = 256
_KNOWN_SECONDS = 300.0
_UNKNOWN_SECONDS = 30.0


@dataclass(frozen=True)
class ModelConfig:
    """A config.json, and the commit it is of (None: a path)."""

    values: Mapping[str, Any]
    revision: str | None


class ModelConfigs:
    """Finds configurations, and remembers those of a hub for a while, also that it did not answer.

    A directory counts as missing only under a root that exists here: a worker elsewhere may have
    it.
    """

    def __init__(
        self, settings: Settings, *, hub_seconds: float, endpoint: str | None = None
    ) -> None:
        self._settings = settings
        self._hub_seconds = hub_seconds
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._known: dict[HubModel, tuple[float, ModelConfig | None]] = {}

    def find(self, model: ModelSource, *, token: str | None = None) -> ModelConfig | None:
        """The configuration, or None when it cannot be seen from here.

        `token` is the secret of the credential that the model names.

        Raises:
            ModelNotFound: there is no such repository, revision or directory.
            InvalidModel: there is one, without a readable config.json.
        """
        if isinstance(model, PathModel):
            return self._on_disk(model)
        return self._on_hub(model, token) if self._hub_seconds else None

    def _on_disk(self, model: PathModel) -> ModelConfig | None:
        directory = Path(model.path)
        if not self._sees(directory):
            return None
        if not directory.is_dir():
            raise ModelNotFound(f"{directory}: no such directory", param="model.path")
        name = model.gguf_file or "config.json"
        path = directory / name
        if not self._settings.allows_path(str(path)) or not path.is_file():
            raise ModelNotFound(f"{directory}: has no {name}", param="model.path")
        read = config_of_gguf if model.gguf_file else read_config
        return ModelConfig(values=read(path), revision=None)

    def _sees(self, directory: Path) -> bool:
        roots = self._settings.allowed_paths
        return any(root.is_dir() and directory.is_relative_to(root) for root in roots)

    def _on_hub(self, model: HubModel, token: str | None) -> ModelConfig | None:
        with self._lock:
            until, known = self._known.get(model, (0.0, None))
        if time.monotonic() < until:
            return known
        found = fetch_config(model, seconds=self._hub_seconds, endpoint=self._endpoint, token=token)
        kept = _KNOWN_SECONDS if found is not None else _UNKNOWN_SECONDS
        with self._lock:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[model] = (time.monotonic() + kept, found)
        return found


def fetch_config(
    model: HubModel, *, seconds: float, endpoint: str | None, token: str | None = None
) -> ModelConfig | None:
    """The config.json of a repository, through the hub's own cache; None if the hub is away.

    Raises:
        ModelNotFound: no such repository or revision.
        InvalidModel: the repository has no config.json, is gated, or the file is none.
    """
    # Only here: most requests need no hub, and its client takes half a second to import.
    from huggingface_hub import errors as hub
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    try:
        url = hf_hub_url(model.id, "config.json", revision=model.revision, endpoint=endpoint)
        size = get_hf_file_metadata(url, timeout=seconds, endpoint=endpoint, token=token).size
        if size is None or size > MAX_BYTES:
            raise InvalidModel(f"{model.id}: config.json has {size} bytes", param="model.id")
        path = Path(
            hf_hub_download(
                model.id,
                "config.json",
                revision=model.revision,
                etag_timeout=seconds,
                endpoint=endpoint,
                token=token,
            )
        )
    except hub.RevisionNotFoundError as error:
        message = f"{model.id} has no revision {model.revision!r}"
        raise ModelNotFound(message, param="model.revision") from error
    except hub.GatedRepoError as error:
        message = f"{model.id} is gated, and this server has no access"
        raise InvalidModel(message, param="model.id") from error
    except (hub.RepositoryNotFoundError, hub.HFValidationError) as error:
        message = f"no model {model.id!r} on the hub, or it is private"
        raise ModelNotFound(message, param="model.id") from error
    except hub.RemoteEntryNotFoundError as error:
        raise InvalidModel(f"{model.id}: has no config.json", param="model.id") from error
    except (OSError, hub.HTTPError):  # type: ignore[attr-defined]  # Base of what its client raises.
        return None
    return ModelConfig(values=read_config(path), revision=path.parent.name)


def read_config(path: Path) -> Mapping[str, Any]:
    """A config.json as it stands.

    Raises:
        InvalidModel: it is too long, or no JSON object.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise InvalidModel("config.json is longer than 1 MiB", param="model")
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InvalidModel("config.json is not JSON", param="model") from error
    if not isinstance(values, dict):
        raise InvalidModel("config.json is not a JSON object", param="model")
    return values
