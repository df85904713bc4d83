"""Scores of one model kept on disk as they come, so that an interrupted evaluation goes on."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from pruning.evaluation.log_likelihood import Request, Score

_FINGERPRINT_CHARACTERS = 32


def model_fingerprint(model: PreTrainedModel) -> str:
    """A digest of the weights and the configuration: the same model gives the same scores."""
    digest = hashlib.sha256(model.config.to_json_string().encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()[:_FINGERPRINT_CHARACTERS]


class ScoreCache:
    """Appends each batch's scores to a JSON Lines file and knows those of earlier runs.

    A line that a kill cut short is dropped.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._scores: dict[str, Score] = {}
        if path is not None and path.is_file():
            self._scores = dict(_read(path))

    def get(self, request: Request) -> Score | None:
        """What was stored of this request, or None."""
        return self._scores.get(_key(request))

    def add(self, scored: Iterable[tuple[Request, Score]]) -> None:
        """Keep a batch."""
        found = {_key(request): score for request, score in scored}
        self._scores.update(found)
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            for key, score in found.items():
                file.write(json.dumps([key, score.log_likelihood, score.is_greedy]) + "\n")


def _key(request: Request) -> str:
    lengths = np.array([len(request.context), len(request.continuation)], dtype=np.int64)
    ids = np.array([*request.context, *request.continuation], dtype=np.int64)
    return hashlib.blake2b(lengths.tobytes() + ids.tobytes(), digest_size=16).hexdigest()


def _read(path: Path) -> Iterable[tuple[str, Score]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            key, log_likelihood, is_greedy = json.loads(line)
        except ValueError:
            continue
        yield key, Score(float(log_likelihood), bool(is_greedy))
