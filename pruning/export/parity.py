"""The proof that goes with an export: its engine's log-probabilities against the canonical model's.

P prompts, K tokens of the vocabulary each, V vocabulary.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, TypeAdapter
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.errors import ExportRefused
from pruning.export.engine import Answer, Engine, ask

PARITY_NAME = "parity.json"

TEXTS = (
    "The gardener prunes the espalier each winter so that it bears more fruit in summer.",
    "def prune(tree, shape):\n    return [branch for branch in tree if branch in shape]\n",
    "In 1984, 42 of the 365 days brought 3.7 mm of rain; the rest were dry.",
    "Les élèves n'ont pas vu l'été: it's they'll, we've, I'D... don't\n\n\tyou think?",
    "北京 and München are cities, Ελλάδα is a country  and   🌳 is a tree.",
    "Q: What is smaller than a tree?\nA: A pruned one.\nQ: And then?\nA:",
)
_LONGEST_PROMPT = 96


class ParityRecord(BaseModel):
    """How far an engine's answers are from the canonical model's, over all prompts.

    Differences are of log-probabilities in nats, over the tokens that the engine returned;
    `divergence` is the mean Kullback-Leibler divergence from the canonical model over them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: Engine
    engine_version: str
    precision: str
    metric: Literal["max_difference", "divergence"]
    tolerance: float
    max_difference: float
    divergence: float
    same_top_token: float
    num_prompts: int
    num_tokens_compared: int
    tokenizer_checked: bool

    @property
    def holds(self) -> bool:
        value = self.max_difference if self.metric == "max_difference" else self.divergence
        return value <= self.tolerance


_RECORDS = TypeAdapter(tuple[ParityRecord, ...])

Tolerance = tuple[Literal["max_difference", "divergence"], float]
"""What is compared, and how much is accepted."""


def check_parity(
    artifact: Path,
    engine: Engine,
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    precision: str,
    tolerance: Tolerance,
    python: str = sys.executable,
) -> ParityRecord:
    """Compare an artifact, run by its engine, with the canonical `model` in fp32.

    `python` is the interpreter of the environment in which the engine is installed.

    Raises:
        ExportRefused: the engine cannot run it, splits text differently, or is too far off.
    """
    token_lists = [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    prompts = [tokens[:_LONGEST_PROMPT] for tokens in token_lists]
    answer = ask(engine, artifact, prompts=prompts, texts=TEXTS, python=python)
    _check_tokens(engine, answer, token_lists)
    record = _record(answer, reference_log_probs(model, prompts), engine, precision, tolerance)
    if not record.holds:
        raise ExportRefused(
            f"{engine} differs from the canonical model: {record.metric} "
            f"{getattr(record, record.metric):.2g}, accepted {record.tolerance:.2g}"
        )
    return record


def write_records(records: Sequence[ParityRecord], directory: Path) -> None:
    """Store the proofs beside the artifact."""
    (directory / PARITY_NAME).write_bytes(_RECORDS.dump_json(tuple(records), indent=2) + b"\n")


def read_records(directory: Path) -> tuple[ParityRecord, ...]:
    """The proofs stored beside an artifact."""
    return _RECORDS.validate_json((directory / PARITY_NAME).read_bytes())


@torch.no_grad()
def reference_log_probs(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]]
) -> NDArray[np.float32]:
    """The canonical model's log-probabilities of the token after each prompt [P, V]."""
    rows = [
        torch.log_softmax(model(input_ids=torch.tensor([list(p)])).logits[0, -1].float(), dim=-1)
        for p in prompts
    ]
    log_probs_PV: NDArray[np.float32] = torch.stack(rows).numpy()
    return log_probs_PV


def _check_tokens(engine: Engine, answer: Answer, expected: list[list[int]]) -> None:
    if answer.tokens is None:
        return
    for text, found, wanted in zip(TEXTS, answer.tokens, expected, strict=True):
        if found != wanted:
            raise ExportRefused(
                f"{engine} splits {text[:30]!r}... into other tokens: {found[:12]} where the "
                f"model's tokenizer gives {wanted[:12]}"
            )


def _record(
    answer: Answer,
    reference_PV: NDArray[np.float32],
    engine: Engine,
    precision: str,
    tolerance: Tolerance,
) -> ParityRecord:
    reference_PK = np.take_along_axis(reference_PV, answer.ids, axis=1)
    difference_PK = reference_PK - answer.log_probs
    top = np.take_along_axis(answer.ids, answer.log_probs.argmax(1)[:, None], axis=1)
    metric, accepted = tolerance
    # A NaN is as far off as can be.
    return ParityRecord(
        engine=engine,
        engine_version=answer.version,
        precision=precision,
        metric=metric,
        tolerance=accepted,
        max_difference=float(np.nan_to_num(np.abs(difference_PK), nan=np.inf).max()),
        divergence=float(
            np.nan_to_num((np.exp(reference_PK) * difference_PK).sum(1).mean(), nan=np.inf)
        ),
        same_top_token=float((top[:, 0] == reference_PV.argmax(1)).mean()),
        num_prompts=len(answer.ids),
        num_tokens_compared=answer.ids.size,
        tokenizer_checked=answer.tokens is not None,
    )
