"""Log-likelihoods of continuations after contexts, each context read once for all that follow it.

Continuations of the same context stand behind it in one packed sequence, each blind to the others:
the numbers are those of one sequence per continuation, at a fraction of the tokens. Logits are only
computed where a continuation is predicted.

B packed sequences, T tokens, P predictions, D hidden, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pruning.models.loss import Precision, autocast, output_head, product_dtype

_CHUNK_PREDICTIONS = 256
_MAX_PACKED_TOKENS = 1024
"""The attention mask of a packed sequence has the square of its length."""
_BATCH_TOKENS = {"cpu": 2048, "cuda": 32_768}
_PADDING, _CONTEXT = -1, 0


@dataclass(frozen=True)
class Request:
    """Token ids of a context, at least one, and of what may follow it, at least one."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class Score:
    """The continuation's summed log-probability in nats, and whether greedy decoding gives it."""

    log_likelihood: float
    is_greedy: bool


@dataclass(frozen=True)
class _Packed:
    """One context and the requests (by index) that share it."""

    context: tuple[int, ...]
    indices: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.context) + sum(len(ids) - 1 for ids in self.continuations)


def score_requests(
    model: PreTrainedModel, requests: Sequence[Request], *, precision: Precision
) -> Iterator[list[tuple[int, Score]]]:
    """The score of each request with its index, batch by batch, the longest first.

    What does not fit into the model's context is cut off at the beginning.
    """
    device = next(model.parameters()).device
    limit = int(getattr(model.config, "max_position_embeddings", None) or 2048)
    fitted = [_fit(request, limit) for request in requests]
    budget = _BATCH_TOKENS.get(device.type, 2048)
    was_training = model.training
    model.eval()
    for batch in _batches(_pack(fitted, shares=_can_share(model, fitted)), budget):
        yield _score_batch(model, batch, device, precision)
    model.train(was_training)


def _fit(request: Request, limit: int) -> Request:
    room = limit + 1 - len(request.continuation)
    if len(request.context) <= room:
        return request
    return Request(request.context[-max(room, 1) :], request.continuation[-limit:])


def _can_share(model: PreTrainedModel, requests: Sequence[Request]) -> bool:
    """Whether a mask of our own says all: inside a sliding window every token sees every other."""
    window = getattr(model.config, "sliding_window", None)
    longest = max((len(r.context) + len(r.continuation) for r in requests), default=0)
    return window is None or longest <= window


def _pack(requests: Sequence[Request], *, shares: bool) -> list[_Packed]:
    """Requests by context, a group ending where it would become too long; the longest first."""
    by_context: dict[object, list[int]] = {}
    for index, request in enumerate(requests):
        by_context.setdefault(request.context if shares else index, []).append(index)
    packed = [
        _Packed(
            requests[part[0]].context,
            tuple(part),
            tuple(requests[index].continuation for index in part),
        )
        for indices in by_context.values()
        for part in _parts(indices, requests)
    ]
    return sorted(packed, key=len, reverse=True)


def _parts(indices: list[int], requests: Sequence[Request]) -> Iterator[list[int]]:
    part: list[int] = []
    length = 0
    for index in indices:
        more = len(requests[index].continuation) - 1
        if part and length + more > _MAX_PACKED_TOKENS:
            yield part
            part = []
        if not part:
            length = len(requests[index].context)
        part.append(index)
        length += more
    yield part


def _batches(packed: list[_Packed], budget: int) -> Iterator[list[_Packed]]:
    """Batches of about equal lengths, of at most `budget` tokens with their padding."""
    batch: list[_Packed] = []
    for group in packed:
        if batch and (len(batch) + 1) * len(batch[0]) > budget:
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch


@torch.no_grad()
def _score_batch(
    model: PreTrainedModel, batch: list[_Packed], device: torch.device, precision: Precision
) -> list[tuple[int, Score]]:
    length = len(batch[0])
    ids_BT = torch.tensor([_padded(_ids(group), length, 0) for group in batch], device=device)
    extra = {}
    if any(len(group.indices) > 1 for group in batch):
        segments_BT = torch.tensor([_padded(_segments(g), length, _PADDING) for g in batch])
        positions = [_padded(_positions(group), length, 0) for group in batch]
        extra = {
            "attention_mask": _mask(model, segments_BT.to(device)),
            "position_ids": torch.tensor(positions, device=device),
        }
    with autocast(device, precision):
        hidden_BTD = model.base_model(input_ids=ids_BT, use_cache=False, **extra).last_hidden_state
    rows, columns, targets, counts = _predictions(batch)
    targets_P = torch.tensor(targets, device=device)
    log_probs_P, greedy_P = _predict(model, hidden_BTD[rows, columns], targets_P, precision)
    indices = [index for group in batch for index in group.indices]
    return [
        (index, Score(float(log_probs.double().sum()), bool(greedy.all())))
        for index, log_probs, greedy in zip(
            indices,
            torch.split(log_probs_P.cpu(), counts),
            torch.split(greedy_P.cpu(), counts),
            strict=True,
        )
    ]


def _predict(
    model: PreTrainedModel, hidden_PD: Tensor, targets_P: Tensor, precision: Precision
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target, and whether no other token has a greater one."""
    head = output_head(model)
    weight_VD = head.weight.to(product_dtype(precision))
    log_probs, greedy = [], []
    for hidden_CD, targets_C in zip(
        torch.split(hidden_PD.to(weight_VD.dtype), _CHUNK_PREDICTIONS),
        torch.split(targets_P, _CHUNK_PREDICTIONS),
        strict=True,
    ):
        logits_CV = head.logits(hidden_CD, weight_VD)
        chosen_C = logits_CV.gather(1, targets_C[:, None]).squeeze(1)
        log_probs.append(chosen_C - logits_CV.logsumexp(dim=1))
        greedy.append(logits_CV.argmax(dim=1) == targets_C)
    return torch.cat(log_probs), torch.cat(greedy)


# --- one packed sequence: context, then each continuation without its last token ------------------


def _ids(group: _Packed) -> list[int]:
    return [*group.context, *(i for ids in group.continuations for i in ids[:-1])]


def _segments(group: _Packed) -> list[int]:
    """0 in the context, then the number of the continuation."""
    numbered = enumerate(group.continuations, start=1)
    return [_CONTEXT] * len(group.context) + [n for n, ids in numbered for _ in ids[:-1]]


def _positions(group: _Packed) -> list[int]:
    start = len(group.context)
    return [
        *range(start),
        *(start + offset for ids in group.continuations for offset in range(len(ids) - 1)),
    ]


def _predictions(
    batch: list[_Packed],
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Where each token of each continuation is predicted: row, column, the token; and how many."""
    rows: list[int] = []
    columns: list[int] = []
    targets: list[int] = []
    counts: list[int] = []
    for row, group in enumerate(batch):
        start = len(group.context)
        for ids in group.continuations:
            rows += [row] * len(ids)
            columns += [len(group.context) - 1, *range(start, start + len(ids) - 1)]
            targets += ids
            counts.append(len(ids))
            start += len(ids) - 1
    return rows, columns, targets, counts


def _padded(values: list[int], length: int, filler: int) -> list[int]:
    return values + [filler] * (length - len(values))


def _mask(model: PreTrainedModel, segments_BT: Tensor) -> Tensor:
    """What each token sees, [B, 1, T, T]: what stands before it in its context and continuation."""
    keys_B1T, queries_BT1 = segments_BT[:, None, :], segments_BT[:, :, None]
    length = segments_BT.shape[1]
    before_TT = torch.ones(length, length, dtype=torch.bool, device=segments_BT.device).tril()
    sees_BTT = before_TT & ((keys_B1T == _CONTEXT) | (keys_B1T == queries_BT1))
    if model.config._attn_implementation == "sdpa":
        return sees_BTT[:, None]
    hidden = torch.finfo(torch.float32).min
    return torch.zeros_like(sees_BTT, dtype=torch.float32).masked_fill(~sees_BTT, hidden)[:, None]
