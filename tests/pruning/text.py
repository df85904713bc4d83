"""Deterministic text with structure to learn, for tests that need more than three sentences."""

import random

_SUBJECTS = ("The gardener", "A pruner", "The old tree", "An espalier", "The apprentice")
_VERBS = ("cuts", "trains", "shapes", "waters", "keeps", "measures")
_OBJECTS = ("the branch", "a young shoot", "the wall", "every bud", "the fruit")
_ENDS = ("in winter.", "each summer.", "with care.", "before the frost.")


def make_documents(num_documents: int, *, seed: int = 0, sentences: int = 12) -> list[str]:
    """Distinct documents of the same small grammar."""
    generator = random.Random(seed)
    return [
        f"Page {seed}-{index}. "
        + " ".join(
            " ".join(generator.choice(words) for words in (_SUBJECTS, _VERBS, _OBJECTS, _ENDS))
            for _ in range(sentences)
        )
        for index in range(num_documents)
    ]
