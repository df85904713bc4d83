"""Our model as lm-evaluation-harness sees it: the library asks, `log_likelihood` answers."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.evaluation.log_likelihood import Request, Score, score_requests
from pruning.evaluation.score_cache import ScoreCache, cache_key
from pruning.models.loss import Precision, autocast

_MAX_NEW_TOKENS = 256
_GENERATE_TOGETHER = 8


class HarnessModel(TemplateLM):  # type: ignore[misc]  # lm-eval ships no types
    """Answers the harness as its own Hugging Face backend would, in fewer products.

    Text is tokenised as that backend does: context and continuation in one string, the
    continuation's ids from where the context's end, blanks at the end of a context moved to the
    continuation, and special tokens added where the tokenizer adds them by itself.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        precision: Precision,
        cache: ScoreCache,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.precision: Precision = precision
        self.cache = cache
        self._device = next(model.parameters()).device

    @property
    def eot_token_id(self) -> int:
        """What ends a document."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context."""
        bos = self.tokenizer.bos_token_id
        return int(bos) if bos is not None else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        """For the harness's own caches."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    @property
    def max_length(self) -> int:
        """Tokens of context."""
        return int(getattr(self.model.config, "max_position_embeddings", None) or 2048)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Ids of one text."""
        return self._encode([string], add_special_tokens)[0]

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation after its context, and whether greedy gives it."""
        del disable_tqdm
        pairs = [instance.args for instance in requests]
        scores = self._scores(self._encode_pairs(pairs))
        return [(score.log_likelihood, score.is_greedy) for score in scores]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """Log-likelihood of each whole text, every token with as much context as fits."""
        del disable_tqdm
        texts = [instance.args[0] for instance in requests]
        windows = [self._windows(ids) for ids in self._encode(texts, add_special_tokens=None)]
        scores = iter(self._scores([request for one in windows for request in one]))
        return [sum(s.log_likelihood for s in islice(scores, len(one))) for one in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Greedy continuations, each cut before the first of its stop strings."""
        del disable_tqdm
        asked = {_key_of_text(*request.args): request.args for request in requests}
        missing = [key for key in asked if self.cache.get(key) is None]
        missing.sort(key=lambda key: -len(asked[key][0]))
        for part in _parts(missing):
            answers = self._generate([asked[key] for key in part])
            self.cache.add(dict(zip(part, answers, strict=True)))
        return [self.cache.get(_key_of_text(*request.args)) for request in requests]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        scores = self._scores([Request(tuple(c), tuple(k)) for _, c, k in requests])
        return [(score.log_likelihood, score.is_greedy) for score in scores]

    def _scores(self, requests: Sequence[Request]) -> list[Score]:
        """Scores in the order asked for; each different request is computed once, ever."""
        keys = [cache_key("score", one.context, one.continuation) for one in requests]
        asked = dict(zip(keys, requests, strict=True))
        missing = [key for key in asked if self.cache.get(key) is None]
        wanted = [asked[key] for key in missing]
        for batch in score_requests(self.model, wanted, precision=self.precision):
            self.cache.add(
                {missing[index]: [score.log_likelihood, score.is_greedy] for index, score in batch}
            )
        return [Score(*self.cache.get(key)) for key in keys]

    def _encode(self, texts: list[str], add_special_tokens: bool | None) -> list[list[int]]:
        if not texts:
            return []
        kwargs = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        encoded = self.tokenizer(
            texts, return_attention_mask=False, return_token_type_ids=False, verbose=False, **kwargs
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Request]:
        moved = [_move_blanks(context, continuation) for context, continuation in pairs]
        contexts = list(dict.fromkeys(context for context, _ in moved if context))
        ids_of = dict(zip(contexts, self._encode(contexts, None), strict=True))
        wholes = self._encode([c + k for c, k in moved if c], None)
        alone = self._encode([k for c, k in moved if not c], add_special_tokens=False)
        with_context, without_context = iter(wholes), iter(alone)
        requests = []
        for context, _ in moved:
            if context:
                ids = ids_of[context]
                requests.append(Request(tuple(ids), tuple(next(with_context)[len(ids) :])))
            else:
                requests.append(self._unconditional(next(without_context)))
        return requests

    def _unconditional(self, ids: list[int]) -> Request:
        if ids[0] == self.prefix_token_id and len(ids) > 1:
            return Request(tuple(ids[:1]), tuple(ids[1:]))
        return Request((self.prefix_token_id,), tuple(ids))

    def _windows(self, ids: list[int]) -> list[Request]:
        rolling = get_rolling_token_windows(
            ids, prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1
        )
        pairs = [make_disjoint_window(window) for window in rolling]
        return [Request(tuple(context), tuple(continuation)) for context, continuation in pairs]

    @torch.no_grad()
    def _generate(self, asked: list[tuple[str, dict[str, Any]]]) -> list[str]:
        settings = [dict(kwargs) for _, kwargs in asked]
        if any(setting.get("do_sample") for setting in settings):
            raise ValueError("only greedy decoding is repeatable: tasks that sample are not run")
        stops = [_stops(setting) for setting in settings]
        budget = max(int(s.get("max_gen_toks", _MAX_NEW_TOKENS)) for s in settings)
        ids = self._encode([context for context, _ in asked], None)
        kept = [one[-(self.max_length - budget) :] for one in ids]
        width = max(map(len, kept))
        pad = self.tokenizer.pad_token_id
        filler = self.eot_token_id if pad is None else int(pad)
        ids_BT = torch.tensor([[filler] * (width - len(one)) + one for one in kept])
        mask_BT = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in kept])
        with autocast(self._device, self.precision):
            output_BT = self.model.generate(
                ids_BT.to(self._device),
                attention_mask=mask_BT.to(self._device),
                max_new_tokens=budget,
                do_sample=False,
                pad_token_id=filler,
            )
        texts = self.tokenizer.batch_decode(output_BT[:, width:], skip_special_tokens=True)
        return [_cut(text, stop) for text, stop in zip(texts, stops, strict=True)]


def _key_of_text(context: str, settings: dict[str, Any]) -> str:
    return cache_key("text", context, sorted(settings.items()))


def _parts(keys: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(keys), _GENERATE_TOGETHER):
        yield keys[start : start + _GENERATE_TOGETHER]


def _move_blanks(context: str, continuation: str) -> tuple[str, str]:
    """Blanks at the end of a context belong to the token that follows."""
    kept = context.rstrip()
    return (kept, context[len(kept) :] + continuation) if kept else (context, continuation)


def _stops(setting: dict[str, Any]) -> list[str]:
    until = setting.get("until") or []
    return [until] if isinstance(until, str) else list(until)


def _cut(text: str, stops: list[str]) -> str:
    for stop in stops:
        if stop:
            text = text.split(stop, 1)[0]
    return text
