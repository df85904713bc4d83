import torch

from pruning.data.calibration import calibration_batches
from pruning.recipe_parts.calibration import CalibrationSize
from tests.pruning.data.test_mixture import make_domain

DOMAINS = [make_domain("a", 5000, 0.75), make_domain("b", 900, 0.25, first=10_000)]
SIZE = CalibrationSize(num_samples=40, sequence_length=16, batch_size=12)


def draw(increment: int) -> torch.Tensor:
    return torch.cat(calibration_batches(DOMAINS, SIZE, seed=5, increment=increment))


def test_batches_have_the_asked_shapes() -> None:
    batches = calibration_batches(DOMAINS, SIZE, seed=5, increment=1)
    assert [tuple(batch.shape) for batch in batches] == [(12, 16)] * 3 + [(4, 16)]


def test_each_increment_draws_anew_and_always_the_same() -> None:
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_windows_are_consecutive_tokens_of_one_domain() -> None:
    ids = draw(1)
    assert torch.equal(ids - ids[:, :1], torch.arange(16).expand(40, 16))


def test_each_domain_gives_its_share_of_every_draw() -> None:
    from_b = [int((draw(increment)[:, 0] >= 10_000).sum()) for increment in range(1, 30)]
    assert set(from_b) <= {9, 10, 11}


def test_the_domains_of_a_draw_come_in_no_order() -> None:
    is_b = draw(1)[:, 0] >= 10_000
    assert not torch.equal(is_b, is_b.sort().values)
