"""Documents that should not be trained on: copies, near copies, and what the evaluation asks.

Words are `\\w+` of the lower-cased text. A copy has the same words in the same order; near copies
share four fifths of their runs of five words; contaminated text shares a run of thirteen words with
what the model will be evaluated on.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from pruning.errors import InvalidRecipe
from pruning.recipe_parts.data import Deduplication

_WORD = re.compile(r"\w+")
_SHINGLE_WORDS = 5
_SIMILARITY = 0.8
_PERMUTATIONS = 64
"""The estimate of a similarity of 0.8 is then off by 0.05."""
CONTAMINATION_WORDS = 13


@dataclass
class CleaningReport:
    """What was taken out of one domain."""

    num_documents: int = 0
    num_copies: int = 0
    num_near_copies: int = 0
    num_contaminated: int = 0

    @property
    def num_removed(self) -> int:
        """All that was taken out."""
        return self.num_copies + self.num_near_copies + self.num_contaminated

    def summary(self) -> str:
        """One sentence for a person."""
        return (
            f"{self.num_removed} of {self.num_documents} documents left out: {self.num_copies} "
            f"copies, {self.num_near_copies} near copies, {self.num_contaminated} that share "
            f"{CONTAMINATION_WORDS} words in a row with an evaluation"
        )


class Cleaner:
    """Keeps what it has not seen, over all domains of a corpus; what it remembers grows with them.

    A copy costs about a hundred bytes of memory a document, a near copy a few kilobytes.
    """

    def __init__(
        self, deduplicate: Deduplication, *, evaluations: "RunsOfWords | None" = None
    ) -> None:
        self._seen: set[bytes] | None = None if deduplicate == "none" else set()
        self._near = _NearCopies() if deduplicate == "near" else None
        self._evaluations = evaluations
        self._asked = deduplicate != "none" or evaluations is not None

    def keep(self, documents: Iterable[str], report: CleaningReport) -> Iterator[str]:
        """The documents to train on; the others are counted."""
        for document in documents:
            report.num_documents += 1
            if not self._asked:
                yield document
                continue
            words = _WORD.findall(document.lower())
            if self._is_copy(words):
                report.num_copies += 1
            elif self._near is not None and self._near.is_one(words):
                report.num_near_copies += 1
            elif self._evaluations is not None and self._evaluations.shares(words):
                report.num_contaminated += 1
            else:
                yield document

    def _is_copy(self, words: Sequence[str]) -> bool:
        if self._seen is None:
            return False
        digest = hashlib.blake2b(" ".join(words).encode(), digest_size=12).digest()
        known = digest in self._seen
        self._seen.add(digest)
        return known


class _NearCopies:
    """Locality-sensitive hashing of MinHash signatures (Broder 1997)."""

    def __init__(self) -> None:
        try:
            # Imported here: it is an extra, and brings scipy.
            from datasketch import MinHash, MinHashLSH
        except ImportError as error:
            raise InvalidRecipe(
                f"near copies need datasketch: {error}",
                param="data.deduplicate",
                hint="Install espalier[evaluation].",
            ) from error
        self._index = MinHashLSH(threshold=_SIMILARITY, num_perm=_PERMUTATIONS)
        self._minhash: Any = MinHash
        self._signatures: list[NDArray[Any]] = []

    def is_one(self, words: Sequence[str]) -> bool:
        """Whether an earlier text is nearly the same; if not, this one is remembered."""
        shingles = {" ".join(run).encode() for run in _runs(words, _SHINGLE_WORDS)}
        if not shingles:
            return False
        minhash = self._minhash(num_perm=_PERMUTATIONS, hashfunc=crc32)
        minhash.update_batch(list(shingles))
        # The index compares only bands of the signatures: what it finds is looked at whole.
        for number in self._index.query(minhash):
            if np.mean(self._signatures[number] == minhash.hashvalues) >= _SIMILARITY:
                return True
        self._index.insert(len(self._signatures), minhash)
        self._signatures.append(minhash.hashvalues)
        return False


class RunsOfWords:
    """The runs of thirteen words of the texts that an evaluation asks."""

    def __init__(self, texts: Iterable[str]) -> None:
        hashes: set[int] = set()
        for text in texts:
            hashes.update(_run_hashes(_WORD.findall(text.lower())))
        self._hashes = hashes

    def __len__(self) -> int:
        return len(self._hashes)

    def digest(self) -> str:
        """Equal for equal runs."""
        ordered = np.array(sorted(self._hashes), dtype=np.uint64)
        return hashlib.sha256(ordered.tobytes()).hexdigest()

    def shares(self, words: Sequence[str]) -> bool:
        """Whether a text, as its words, has one of the runs."""
        return any(run in self._hashes for run in _run_hashes(words))


def _run_hashes(words: Sequence[str]) -> Iterator[int]:
    for run in _runs(words, CONTAMINATION_WORDS):
        digest = hashlib.blake2b(" ".join(run).encode(), digest_size=8).digest()
        yield int.from_bytes(digest, "big")


def _runs(words: Sequence[str], length: int) -> Iterator[Sequence[str]]:
    return (words[start : start + length] for start in range(len(words) - length + 1))
