import random

import pytest
import torch
from transformers import PreTrainedModel

from pruning.evaluation.log_likelihood import Request, Score, score_requests
from tests.pruning.tiny import VOCAB_SIZE, make_tiny_model

FAMILIES = ("llama", "mistral", "gemma2", "granite")


def make_requests(*, num_contexts: int = 12, seed: int = 0) -> list[Request]:
    """Contexts of many lengths, each with one to four continuations."""
    generator = random.Random(seed)

    def ids(longest: int) -> tuple[int, ...]:
        return tuple(
            generator.randrange(1, VOCAB_SIZE) for _ in range(generator.randint(1, longest))
        )

    contexts = [ids(30) for _ in range(num_contexts)]
    return [Request(c, ids(9)) for c in contexts for _ in range(generator.randint(1, 4))]


def naive_score(model: PreTrainedModel, request: Request) -> Score:
    ids_BT = torch.tensor([request.context + request.continuation])
    with torch.no_grad():
        logits_TV = model(ids_BT).logits[0, len(request.context) - 1 : -1]
    targets_T = torch.tensor(request.continuation)
    log_probs_TV = logits_TV.log_softmax(dim=-1)
    return Score(
        float(log_probs_TV.gather(1, targets_T[:, None]).sum()),
        bool((logits_TV.argmax(dim=1) == targets_T).all()),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_sharing_a_context_changes_no_score(family: str) -> None:
    model = make_tiny_model(family)
    requests = make_requests()
    batches = list(score_requests(model, requests, precision="float32"))
    scores = {index: score for batch in batches for index, score in batch}
    assert sorted(scores) == list(range(len(requests)))
    for index, request in enumerate(requests):
        expected = naive_score(model, request)
        assert scores[index].log_likelihood == pytest.approx(expected.log_likelihood, abs=1e-4)
        assert scores[index].is_greedy == expected.is_greedy


def test_inside_a_sliding_window_contexts_are_not_shared() -> None:
    model = make_tiny_model("mistral", sliding_window=8)
    requests = make_requests(num_contexts=4)
    for batch in score_requests(model, requests, precision="float32"):
        for index, score in batch:
            expected = naive_score(model, requests[index])
            assert score.log_likelihood == pytest.approx(expected.log_likelihood, abs=1e-4)


def test_a_context_too_long_for_the_model_loses_its_beginning(tiny_llama: PreTrainedModel) -> None:
    tiny_llama.config.max_position_embeddings = 16
    long = Request(tuple(range(1, 41)), (7, 8, 9))
    cut = Request(long.context[-14:], long.continuation)
    ((found,),) = score_requests(tiny_llama, [long], precision="float32")
    assert found[1].log_likelihood == pytest.approx(
        naive_score(tiny_llama, cut).log_likelihood, abs=1e-4
    )


def test_greedy_continuations_are_recognised(tiny_llama: PreTrainedModel) -> None:
    context = (5, 6, 7)
    with torch.no_grad():
        likely = int(tiny_llama(torch.tensor([context])).logits[0, -1].argmax())
    requests = [Request(context, (likely,)), Request(context, ((likely + 1) % VOCAB_SIZE,))]
    scores = dict(next(score_requests(tiny_llama, requests, precision="float32")))
    assert [scores[0].is_greedy, scores[1].is_greedy] == [True, False]
