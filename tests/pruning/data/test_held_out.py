from hypothesis import given
from hypothesis import strategies as st

from pruning.data.held_out import split_held_out

documents_strategy = st.lists(st.text(max_size=5), max_size=40)


def held(documents: list[str], fraction: float) -> set[str]:
    return {document for document, is_held in split_held_out(documents, fraction) if is_held}


@given(documents_strategy, st.randoms(), st.sampled_from([0.001, 0.05, 0.5]))
def test_the_same_documents_are_held_out_in_any_order(documents, random, fraction) -> None:
    shuffled = documents[:]
    random.shuffle(shuffled)
    assert held(documents, fraction) == held(shuffled, fraction)


@given(documents_strategy, st.sampled_from([0.001, 0.05, 0.5]))
def test_every_document_comes_out_once_on_one_side(documents, fraction) -> None:
    pairs = list(split_held_out(documents, fraction))
    assert sorted(document for document, _ in pairs) == sorted(documents)
    assert not {d for d, is_held in pairs if is_held} & {d for d, is_held in pairs if not is_held}


@given(documents_strategy)
def test_two_different_documents_are_enough_for_both_sides(documents) -> None:
    sides = {is_held for _, is_held in split_held_out(documents, 1e-9)}
    assert len(sides) == min(2, len(set(documents)))


def test_about_the_asked_fraction_is_held_out() -> None:
    documents = [f"document {i}" for i in range(20_000)]
    assert 0.045 < len(held(documents, 0.05)) / len(documents) < 0.055
