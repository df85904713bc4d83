import random

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from pruning.paired import compare_rows, decode_rows, encode_rows


def test_rows_come_back_as_they_went() -> None:
    outcomes = [0.0, 1.0, -3.25, 1e-7]
    assert decode_rows(encode_rows(outcomes)) == pytest.approx(outcomes, rel=1e-6)


def test_ten_thousand_answers_take_little_room() -> None:
    generator = random.Random(0)
    assert len(encode_rows([float(generator.random() < 0.3) for _ in range(10_000)])) < 4_000


def test_text_that_is_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="not encoded rows"):
        decode_rows("aGVsbG8=")


def test_right_and_wrong_answers_are_compared_by_mcnemar() -> None:
    first = [1.0] * 30 + [0.0] * 12 + [1.0] * 4
    second = [1.0] * 30 + [1.0] * 12 + [0.0] * 4
    found = compare_rows(first, second)
    assert found is not None
    assert (found.test, found.num_greater, found.num_less) == ("mcnemar", 12, 4)
    assert found.difference == pytest.approx(8 / 46)
    assert found.p_value == pytest.approx(binomtest(4, 16).pvalue)


def test_other_outcomes_are_compared_by_their_paired_differences() -> None:
    generator = np.random.default_rng(0)
    first = generator.normal(3, 1, 200)
    second = first + generator.normal(0.05, 0.2, 200)
    found = compare_rows(list(first), list(second))
    assert found is not None
    stderr = (second - first).std(ddof=1) / np.sqrt(200)
    assert found.stderr == pytest.approx(stderr)
    assert found.p_value == pytest.approx(2 * norm.sf(abs((second - first).mean()) / stderr))
    assert found.test == "paired_normal"


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        shared = generator.normal(0, 1, 50)
        found = compare_rows(list(shared), list(shared + generator.normal(0.1, 0.3, 50)))
        assert found is not None
        covered += found.low <= 0.1 <= found.high
    assert 0.90 <= covered / 300 <= 0.985


def test_different_rows_are_not_compared() -> None:
    assert compare_rows([1.0, 0.0, 1.0], [1.0, 0.0]) is None
