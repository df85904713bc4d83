"""What a teacher predicts of training sequences, kept on disk: its most likely tokens.

B sequences, T tokens, P = T - 1 predictions of each, K tokens of each prediction.
"""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pruning.data.tokens import token_dtype
from pruning.errors import InvalidRecipe
from pruning.models.distillation import TopTokens

_KEY_BYTES = 16
_LOG_PROBABILITY_BYTES = 2


class TeacherCache:
    """Files with room for `num_sequences`, filled as they are asked for; the tokens are the key."""

    def __init__(
        self,
        directory: Path,
        *,
        num_sequences: int,
        num_predictions: int,
        top_k: int,
        vocab_size: int,
    ) -> None:
        """Open what an earlier attempt of the run left in `directory`, or begin.

        Raises:
            InvalidRecipe: the disk has no room for it.
        """
        shape = (num_sequences, num_predictions, min(top_k, vocab_size))
        self._shape = shape
        directory.mkdir(parents=True, exist_ok=True)
        self._keys_file = directory / "keys.bin"
        kept = self._keys_file.read_bytes() if self._keys_file.exists() else b""
        self._slots = {
            kept[at : at + _KEY_BYTES]: at // _KEY_BYTES
            for at in range(0, len(kept) - _KEY_BYTES + 1, _KEY_BYTES)
        }
        id_type = token_dtype(vocab_size)
        _check_room(directory, cache_bytes(shape, id_type), found=_disk_bytes(directory))
        self._tokens = _open(directory / "tokens.bin", id_type, shape)
        self._log_probabilities = _open(directory / "log_probabilities.bin", np.float16, shape)

    @property
    def num_tokens(self) -> int:
        """K."""
        return self._shape[2]

    def get(self, ids_BT: Tensor, predict: Callable[[Tensor], TopTokens]) -> TopTokens:
        """The teacher's tokens for each sequence; `predict` is asked for those not yet known."""
        keys = [_key(ids_T) for ids_T in ids_BT]
        new = {key: index for index, key in enumerate(keys) if key not in self._slots}
        if new:
            self._keep(list(new), predict(ids_BT[list(new.values())]))
        slots = [self._slots[key] for key in keys]
        return TopTokens(
            tokens=torch.from_numpy(self._tokens[slots].astype(np.int64)).to(ids_BT.device),
            log_probabilities=torch.from_numpy(
                self._log_probabilities[slots].astype(np.float32)
            ).to(ids_BT.device),
        )

    def _keep(self, keys: list[bytes], found: TopTokens) -> None:
        first = len(self._slots)
        room = slice(first, first + len(keys))
        self._tokens[room] = found.tokens.cpu().numpy()
        self._log_probabilities[room] = found.log_probabilities.cpu().numpy()
        # The key comes last: what a kill interrupts is not believed.
        with self._keys_file.open("ab") as file:
            file.write(b"".join(keys))
        self._slots.update({key: first + index for index, key in enumerate(keys)})


def cache_bytes(shape: tuple[int, int, int], id_type: type[np.unsignedinteger]) -> int:
    """What a cache of [sequences, P, K] takes on disk when it is full."""
    sequences, predictions, tokens = shape
    entry = np.dtype(id_type).itemsize + _LOG_PROBABILITY_BYTES
    return sequences * (predictions * tokens * entry + _KEY_BYTES)


def _check_room(directory: Path, needed: int, *, found: int) -> None:
    free = shutil.disk_usage(directory).free + found
    if needed > free:
        raise InvalidRecipe(
            f"the teacher's predictions would take {needed:,} bytes, the disk has {free:,}",
            param="recovery.distillation.teacher_cache",
            hint="Keep fewer tokens of each (top_k), or leave the cache out.",
        )


def _disk_bytes(directory: Path) -> int:
    """What lies there already; files are written into, and take no room where they are empty."""
    return sum(512 * path.stat().st_blocks for path in directory.iterdir())


def _open(path: Path, dtype: type[np.generic], shape: tuple[int, int, int]) -> NDArray[np.generic]:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    with path.open("ab") as file:
        file.truncate(size)
    return np.memmap(path, dtype=dtype, mode="r+", shape=shape)


def _key(ids_T: Tensor) -> bytes:
    return hashlib.blake2b(ids_T.cpu().numpy().tobytes(), digest_size=_KEY_BYTES).digest()
