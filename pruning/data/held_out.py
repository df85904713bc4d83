"""Which documents are kept for evaluation: decided by their content alone. Pure."""

import hashlib
from collections.abc import Iterable, Iterator

_HASH_BYTES = 8


def content_hash(document: str) -> int:
    """A uniform 64-bit number from the document's text."""
    digest = hashlib.sha256(document.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:_HASH_BYTES], "big")


def split_held_out(documents: Iterable[str], fraction: float) -> Iterator[tuple[str, bool]]:
    """Each document with whether it is held out, whatever its position in the stream.

    A document is held out when its hash falls below `fraction`. Where none does and there are at
    least two, the one with the smallest hash is, so that small corpora have a held-out text too:
    the smallest seen so far, with its copies, is kept back until the end of the stream.
    """
    threshold = int(fraction * 2 ** (8 * _HASH_BYTES))
    smallest: list[str] = []
    smallest_hash = -1
    any_held_out = any_released = False
    for document in documents:
        position = content_hash(document)
        if position < threshold:
            any_held_out = True
            yield document, True
        elif position == smallest_hash:
            smallest.append(document)
        elif not smallest or position < smallest_hash:
            any_released = any_released or bool(smallest)
            yield from ((former, False) for former in smallest)
            smallest, smallest_hash = [document], position
        else:
            any_released = True
            yield document, False
    yield from ((document, any_released and not any_held_out) for document in smallest)
