"""Packed training sequences drawn from the domains by weight, in a seeded, resumable order.

B sequences, T tokens.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pruning.data.corpus import DomainTokens
from pruning.errors import InvalidData


@dataclass(frozen=True, kw_only=True)
class Exhaustion:
    """A domain gave every sequence it has; `epoch` is the pass that begins now, counted from 1."""

    domain: str
    epoch: int


class MixtureSampler:
    """Draws windows of T tokens; each domain has always given its share to within a sequence.

    Inside a domain the windows come in a random order, new in each epoch, that depends on the seed
    alone. The next domain is always the one furthest behind its share, so one pass over the corpus
    is exactly that.
    """

    def __init__(self, domains: Iterable[DomainTokens], *, sequence_length: int, seed: int) -> None:
        self._sequence_length = sequence_length
        self._seed = seed
        self._domains = [d for d in domains if len(d.train) >= sequence_length and d.weight > 0]
        if not self._domains:
            raise InvalidData(
                f"no domain holds {sequence_length} training tokens, the length of one sequence",
                param="data.train",
                hint="Give more text, or a smaller recovery.sequence_length.",
            )
        scale = sum(domain.weight for domain in self._domains)
        self._weights = [domain.weight / scale for domain in self._domains]
        self._credit = [0.0] * len(self._domains)
        self._drawn = [0] * len(self._domains)
        self._order: dict[int, tuple[int, NDArray[np.int64]]] = {}

    @property
    def weights(self) -> dict[str, float]:
        """Mixture weights by domain name."""
        return {d.name: w for d, w in zip(self._domains, self._weights, strict=True)}

    def reweigh(self, weights: Mapping[str, float]) -> None:
        """Draw by other weights from the next sequence on; they name every domain and sum to 1."""
        self._weights = [weights[domain.name] for domain in self._domains]

    @property
    def num_windows(self) -> int:
        """Sequences that differ: what one pass over every domain gives."""
        return sum(self.num_sequences(index) for index in range(len(self._domains)))

    def num_sequences(self, index: int) -> int:
        """Windows that one pass over a domain gives."""
        return len(self._domains[index].train) // self._sequence_length

    def next_batch(self, batch_sequences: int) -> tuple[Tensor, tuple[Exhaustion, ...]]:
        """`ids_BT`, int64 on the CPU, and the domains that began another pass with it."""
        windows = []
        exhausted = []
        for _ in range(batch_sequences):
            index = self._next_domain()
            epoch, position = divmod(self._drawn[index], self.num_sequences(index))
            if epoch and not position:
                exhausted.append(Exhaustion(domain=self._domains[index].name, epoch=epoch + 1))
            windows.append(self._window(index, epoch, position))
            self._drawn[index] += 1
        return torch.from_numpy(np.stack(windows)), tuple(exhausted)

    def _next_domain(self) -> int:
        self._credit = [c + w for c, w in zip(self._credit, self._weights, strict=True)]
        index = max(range(len(self._credit)), key=self._credit.__getitem__)
        self._credit[index] -= 1.0
        return index

    def _window(self, index: int, epoch: int, position: int) -> NDArray[np.int64]:
        cached = self._order.get(index)
        if cached is None or cached[0] != epoch:
            generator = np.random.default_rng([self._seed, index, epoch])
            cached = (epoch, generator.permutation(self.num_sequences(index)))
            self._order[index] = cached
        start = int(cached[1][position]) * self._sequence_length
        tokens = self._domains[index].train[start : start + self._sequence_length]
        return tokens.astype(np.int64)

    def state(self) -> dict[str, Any]:
        """The cursor, as JSON: what each domain has given, its credit and its weight."""
        return {
            d.name: {"drawn": drawn, "credit": credit, "weight": weight}
            for d, drawn, credit, weight in zip(
                self._domains, self._drawn, self._credit, self._weights, strict=True
            )
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a cursor of the same corpus.

        Raises:
            InvalidData: the cursor names other domains.
        """
        names = [domain.name for domain in self._domains]
        if sorted(state) != sorted(names):
            raise InvalidData(
                f"the checkpoint was trained on the domains {', '.join(sorted(state))}; "
                f"the corpus now has {', '.join(sorted(names))}",
                param="data.train",
            )
        self._drawn = [int(state[name]["drawn"]) for name in names]
        self._credit = [float(state[name]["credit"]) for name in names]
        self._weights = [float(state[name]["weight"]) for name in names]
