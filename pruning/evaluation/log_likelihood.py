"""Log-likelihoods of continuations after contexts, a beginning that several share read once.

Requests that begin alike stand in one packed row, each blind to what the others add: the numbers
are those of one sequence per request, at a fraction of the tokens. Logits are only computed where
something is predicted, once for all that is predicted there.

B rows, T tokens, P predictions at U places, C of them at a time, D hidden, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pruning.evaluation.packing import Row, pack
from pruning.models.loss import Precision, autocast, output_head, product_dtype

_CHUNK_PLACES = 256
_MAX_ROW_TOKENS = 2048
"""The attention mask of a row has the square of its length."""
_BATCH_TOKENS = 32_768
_BATCH_TOKENS_PER_THREAD = 512
"""On a CPU, which is fastest while the widest activations of a batch stay in its caches."""
_FREE_KEYS_PER_CHANNEL = 6
"""A token's other products take as long as attending to about six tokens for each channel."""


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


def score_requests(
    model: PreTrainedModel, requests: Sequence[Request], *, precision: Precision
) -> Iterator[list[tuple[int, Score]]]:
    """The score of each request with its index, batch by batch, the longest first.

    What does not fit into the model's context is cut off at the beginning.
    """
    device = next(model.parameters()).device
    limit = int(getattr(model.config, "max_position_embeddings", None) or 2048)
    fitted = [_fit(request, limit) for request in requests]
    rows = pack(
        [request.context + request.continuation[:-1] for request in fitted],
        share=_can_share(model, fitted),
        max_tokens=_MAX_ROW_TOKENS,
        free_keys=_FREE_KEYS_PER_CHANNEL * model.config.hidden_size,
    )
    was_training = model.training
    model.eval()
    on_cpu = device.type == "cpu"
    budget = _BATCH_TOKENS_PER_THREAD * torch.get_num_threads() if on_cpu else _BATCH_TOKENS
    for batch in _batches(rows, budget):
        yield _score_batch(model, batch, fitted, precision)
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


def _batches(rows: list[Row], budget: int) -> Iterator[list[Row]]:
    """Batches of about equal lengths, of at most `budget` tokens with their padding."""
    batch: list[Row] = []
    for row in rows:
        if batch and (len(batch) + 1) * len(batch[0]) > budget:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


@torch.no_grad()
def _score_batch(
    model: PreTrainedModel, batch: list[Row], requests: Sequence[Request], precision: Precision
) -> list[tuple[int, Score]]:
    hidden_BTD = _hidden(model, batch, precision)
    asked = [(row, index) for row in range(len(batch)) for index in batch[row].places]
    length = len(batch[0])
    places = [
        row * length + place
        for row, index in asked
        for place in batch[row].places[index][len(requests[index].context) - 1 :]
    ]
    targets = [token for _, index in asked for token in requests[index].continuation]
    counts = [len(requests[index].continuation) for _, index in asked]
    places_U, place_P = torch.unique(
        torch.tensor(places, device=hidden_BTD.device), return_inverse=True
    )
    log_probs_P, greedy_P = _predict(
        model,
        hidden_BTD.flatten(0, 1)[places_U],
        place_P,
        torch.tensor(targets, device=hidden_BTD.device),
        precision,
    )
    return [
        (index, Score(float(log_probs.double().sum()), bool(greedy.all())))
        for (_, index), log_probs, greedy in zip(
            asked,
            torch.split(log_probs_P.cpu(), counts),
            torch.split(greedy_P.cpu(), counts),
            strict=True,
        )
    ]


def _hidden(model: PreTrainedModel, batch: list[Row], precision: Precision) -> Tensor:
    """Last hidden states [B, T, D] of rows, the longest first."""
    device = next(model.parameters()).device
    length = len(batch[0])

    def padded(values: list[list[int]], filler: int) -> Tensor:
        rows = [row + [filler] * (length - len(row)) for row in values]
        return torch.tensor(rows, device=device)

    extra = {}
    if any(row.branches for row in batch):
        ends_BT = padded([row.ends for row in batch], length)
        extra = {
            "attention_mask": _mask(model, ends_BT),
            "position_ids": padded([row.positions for row in batch], 0),
        }
    with autocast(device, precision):
        hidden_BTD: Tensor = model.base_model(
            input_ids=padded([row.ids for row in batch], 0), use_cache=False, **extra
        ).last_hidden_state
    return hidden_BTD


def _mask(model: PreTrainedModel, ends_BT: Tensor) -> Tensor:
    """What each token sees, [B, 1, T, T]: itself, and what stands before it with it behind."""
    places_T = torch.arange(ends_BT.shape[1], device=ends_BT.device)
    sees_BTT = (places_T[:, None] >= places_T) & (places_T[:, None] < ends_BT[:, None, :])
    if model.config._attn_implementation == "sdpa":
        return sees_BTT[:, None]
    hidden = torch.finfo(torch.float32).min
    return torch.zeros_like(sees_BTT, dtype=torch.float32).masked_fill(~sees_BTT, hidden)[:, None]


def _predict(
    model: PreTrainedModel,
    hidden_UD: Tensor,
    place_P: Tensor,
    targets_P: Tensor,
    precision: Precision,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target at its place, and whether no other token has a greater one."""
    head = output_head(model)
    weight_VD = head.weight.to(product_dtype(precision))
    log_probs_P = torch.empty(len(place_P), device=hidden_UD.device)
    greedy_P = torch.empty(len(place_P), dtype=torch.bool, device=hidden_UD.device)
    chunks = torch.split(hidden_UD.to(weight_VD.dtype), _CHUNK_PLACES)
    for number, hidden_CD in enumerate(chunks):
        here_P = place_P // _CHUNK_PLACES == number
        place_H, targets_H = place_P[here_P] % _CHUNK_PLACES, targets_P[here_P]
        # The kernel of lm-eval's own backend: in a long continuation the rounding of another one
        # adds up to a thousandth of a nat.
        log_probs_CV = head.logits(hidden_CD, weight_VD).log_softmax(dim=1)
        log_probs_P[here_P] = log_probs_CV[place_H, targets_H]
        greedy_P[here_P] = log_probs_CV.argmax(dim=1)[place_H] == targets_H
    return log_probs_P, greedy_P
