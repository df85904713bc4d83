"""What was found of a model, kept on disk as it comes: an interrupted evaluation goes on."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

_FINGERPRINT_CHARACTERS = 32


def model_fingerprint(model: PreTrainedModel) -> str:
    """A digest of the weights and the configuration: the same model gives the same scores."""
    digest = hashlib.sha256(model.config.to_json_string().encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()[:_FINGERPRINT_CHARACTERS]


def cache_key(kind: str, *asked: Any) -> str:
    """A digest of what was asked, of plain values, as a key."""
    return hashlib.blake2b(repr((kind, asked)).encode(), digest_size=16).hexdigest()


class ScoreCache:
    """Appends what was found, as JSON by key, to a file of lines and knows that of earlier runs.

    A line that a kill cut short is dropped.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._found: dict[str, Any] = {}
        if path is not None and path.is_file():
            self._found = dict(_read(path))

    def get(self, key: str) -> Any:
        """What was stored under a key, or None."""
        return self._found.get(key)

    def add(self, found: Mapping[str, Any]) -> None:
        """Keep a batch."""
        self._found.update(found)
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps([key, value]) + "\n" for key, value in found.items())


def _read(path: Path) -> Iterable[tuple[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            key, value = json.loads(line)
        except ValueError:
            continue
        yield key, value
