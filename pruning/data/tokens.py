"""A compact token file: ids in the smallest type that holds the vocabulary, memory-mapped.

A token that is read but not learned, such as what the user says in a conversation, stands there as
the complement of its id, which is negative.
"""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.integer[Any]]


def token_dtype(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """uint16 up to 65,536 ids, else uint32."""
    return np.uint16 if vocab_size <= 2**16 else np.uint32


def token_ids(tokens: Tokens) -> NDArray[np.int64]:
    """The ids of all tokens, learned or only read."""
    ids = tokens.astype(np.int64)
    return np.where(ids < 0, ~ids, ids)


class TokenWriter:
    """Appends documents to a token file, each followed by the end-of-sequence token.

    In a file of `chats` some tokens are only read, the end among them: conversations have an end
    of their own.
    """

    def __init__(
        self, path: Path, *, vocab_size: int, eos_token_id: int, chats: bool = False
    ) -> None:
        self._path = path
        self._dtype = np.int32 if chats else token_dtype(vocab_size)
        self._end = ~eos_token_id if chats else eos_token_id
        self._file = path.open("wb")
        self.num_tokens = 0
        self.num_documents = 0

    def append(self, ids: Sequence[int]) -> None:
        """Write one document's ids."""
        self._file.write(np.asarray([*ids, self._end], dtype=self._dtype).tobytes())
        self.num_tokens += len(ids) + 1
        self.num_documents += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def read(self) -> Tokens:
        """The closed file, memory-mapped read-only; shape [num_tokens]."""
        if not self.num_tokens:
            return np.empty(0, dtype=self._dtype)  # An empty file cannot be mapped.
        return np.memmap(self._path, dtype=self._dtype, mode="r")
