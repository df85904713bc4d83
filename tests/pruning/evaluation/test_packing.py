import random

from pruning.evaluation.packing import Ids, Row, pack


def make_sequences(*, num_stems: int = 10, seed: int = 0) -> list[Ids]:
    """Sequences that share stems, with copies, and with some that begin others."""
    generator = random.Random(seed)

    def ids(longest: int) -> Ids:
        return tuple(generator.randrange(5) for _ in range(generator.randint(1, longest)))

    stems = [ids(30) for _ in range(num_stems)]
    found = [stem + ids(6) for stem in stems for _ in range(generator.randint(1, 4))]
    return [*found, *stems, found[0]]


def seen_by(row: Row, place: int) -> list[int]:
    return [other for other in range(place + 1) if place < row.ends[other]]


def test_each_token_of_a_packed_sequence_sees_the_sequence_before_it_and_nothing_else() -> None:
    sequences = make_sequences()
    rows = pack(sequences, share=True, max_tokens=100, free_keys=1000)
    found = {index: (row, places) for row in rows for index, places in row.places.items()}
    assert sorted(found) == list(range(len(sequences)))
    assert len(rows) < len(sequences)
    for index, (row, places) in found.items():
        assert tuple(row.ids[place] for place in places) == sequences[index]
        assert [row.positions[place] for place in places] == list(range(len(places)))
        for length, place in enumerate(places, start=1):
            assert seen_by(row, place) == places[:length]


def test_a_beginning_that_sequences_share_stands_once() -> None:
    stem = tuple(range(20))
    (row,) = pack(
        [(*stem, 30), (*stem, 31, 32), (*stem[:10], 33)], share=True, max_tokens=99, free_keys=1000
    )
    assert len(row) == 20 + 1 + 2 + 1
    assert row.branches


def test_a_sequence_that_begins_another_costs_nothing_and_needs_no_mask() -> None:
    (row,) = pack([(1, 2), (1, 2, 3), (1, 2)], share=False, max_tokens=99, free_keys=1000)
    assert row.ids == [1, 2, 3]
    assert not row.branches


def test_sequences_share_no_row_where_the_attention_would_cost_more_than_the_beginning() -> None:
    sequences = [(1, 2, *range(10 * n, 10 * n + 100)) for n in range(1, 5)]
    assert len(pack(sequences, share=True, max_tokens=1000, free_keys=3000)) == 4
    assert len(pack(sequences, share=True, max_tokens=1000, free_keys=300_000)) == 1


def test_a_row_grows_no_longer_than_it_may() -> None:
    stem = tuple(range(50))
    sequences = [(*stem, 100 + n, *range(200, 220)) for n in range(9)]
    rows = pack(sequences, share=True, max_tokens=128, free_keys=10_000)
    assert [len(row) for row in rows] == [113, 113, 113]
