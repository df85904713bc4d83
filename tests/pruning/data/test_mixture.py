import json

import numpy as np
import pytest
import torch

from pruning.data.corpus import DomainTokens
from pruning.data.mixture import Exhaustion, MixtureSampler
from pruning.errors import InvalidData


def make_domain(name: str, num_tokens: int, weight: float, first: int = 0) -> DomainTokens:
    tokens = np.arange(first, first + num_tokens, dtype=np.uint16)
    return DomainTokens(name=name, weight=weight, train=tokens, held_out=tokens[:0])


def make_sampler(seed: int = 3) -> MixtureSampler:
    domains = [make_domain("a", 806, 0.8), make_domain("b", 205, 0.2, first=10_000)]
    return MixtureSampler(domains, sequence_length=10, seed=seed)


def test_one_pass_gives_every_window_once() -> None:
    batch, exhausted = make_sampler().next_batch(100)
    assert not exhausted
    assert sorted(batch[:, 0].tolist()) == [*range(0, 800, 10), *range(10_000, 10_200, 10)]


@pytest.mark.parametrize("num_sequences", [1, 7, 33, 90])
def test_every_domain_has_always_given_its_share(num_sequences: int) -> None:
    batch, _ = make_sampler().next_batch(num_sequences)
    from_b = int((batch[:, 0] >= 10_000).sum())
    assert abs(from_b - 0.2 * num_sequences) < 1


def test_the_order_is_random_and_depends_on_the_seed() -> None:
    first, again, other = (make_sampler(seed).next_batch(80)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first[:, 0].tolist() != sorted(first[:, 0].tolist())


@pytest.mark.parametrize("cut", [1, 13, 99, 250])
def test_a_resumed_sampler_goes_on_with_the_same_sequences(cut: int) -> None:
    whole, _ = make_sampler().next_batch(300)
    interrupted = make_sampler()
    interrupted.next_batch(cut)
    resumed = make_sampler()
    resumed.load_state(json.loads(json.dumps(interrupted.state())))
    assert torch.equal(resumed.next_batch(300 - cut)[0], whole[cut:])


def test_a_domain_that_runs_out_is_reported_with_its_epoch() -> None:
    domains = [make_domain("a", 100, 0.5), make_domain("b", 30, 0.5, first=10_000)]
    sampler = MixtureSampler(domains, sequence_length=10, seed=0)
    _, exhausted = sampler.next_batch(14)
    assert exhausted == (
        Exhaustion(domain="b", epoch=2),
        Exhaustion(domain="b", epoch=3),
    )


def test_a_cursor_of_other_domains_is_refused() -> None:
    with pytest.raises(InvalidData, match="now has a, b"):
        make_sampler().load_state({"a": {"drawn": 1, "credit": 0.0}})


def test_too_little_text_is_refused() -> None:
    with pytest.raises(InvalidData, match="no domain holds 10 training tokens"):
        MixtureSampler([make_domain("a", 9, 1.0)], sequence_length=10, seed=0)


def test_new_weights_hold_from_the_next_sequence_on() -> None:
    sampler = make_sampler()
    sampler.next_batch(20)
    sampler.reweigh({"a": 0.25, "b": 0.75})
    batch, _ = sampler.next_batch(20)
    assert int((batch[:, 0] >= 10_000).sum()) == pytest.approx(15, abs=1)


def test_a_resumed_sampler_keeps_its_new_weights() -> None:
    whole, resumed = make_sampler(), make_sampler()
    whole.reweigh({"a": 0.25, "b": 0.75})
    whole.next_batch(13)
    resumed.load_state(json.loads(json.dumps(whole.state())))
    assert resumed.weights == {"a": 0.25, "b": 0.75}
    assert torch.equal(resumed.next_batch(50)[0], whole.next_batch(50)[0])
