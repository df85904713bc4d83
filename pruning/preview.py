"""A look at a corpus before a job is made of it: how much text, of what kind, and what is odd.

Torch-free. Only the beginning of each domain is read, within bounds of documents, characters and
time; where a tokenizer is at hand tokens are counted, else guessed.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from tokenizers import Tokenizer

from pruning.data.cleaning import Cleaner, CleaningReport
from pruning.data.held_out import split_held_out
from pruning.data.sources import NamedSource, ReadReport, expand_domains, read_documents
from pruning.errors import PruningError
from pruning.recipe_parts.data import Data, HubData

MAX_DOCUMENTS = 2_000
"""Of each domain."""
_MAX_CHARACTERS = 4_000_000
_SECONDS = 10.0
_ROWS = 3
_ROW_CHARACTERS = 500
_BYTES_PER_TOKEN = 4.0
_FEW_DOCUMENTS = 20
_TOGETHER = 64


@dataclass(frozen=True, kw_only=True)
class DomainPreview:
    """The beginning of one domain; `complete` where it is all of it."""

    name: str
    num_documents: int
    num_bytes: int
    num_tokens: int
    num_held_out: int
    num_malformed: int
    num_copies: int
    rows: tuple[str, ...]
    complete: bool
    weight: float | None
    license: str | None


@dataclass(frozen=True, kw_only=True)
class Preview:
    """All domains of a corpus, and what its owner should know."""

    domains: tuple[DomainPreview, ...]
    tokens_counted: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Until:
    """Reading ends at this time."""

    deadline: float

    def in_time(self, documents: Iterator[str]) -> Iterator[str]:
        for document in documents:
            yield document
            if time.monotonic() > self.deadline:
                return


def preview(
    data: Data, tokenizer: Tokenizer | None, *, reads_hub: bool, hub_token: str | None = None
) -> Preview:
    """What the text of a recipe looks like, its uploads already being paths.

    What this process cannot read, for want of a hub or of a library, is said among the warnings.
    Conversations are shown as they were written: only the run applies their template.

    Raises:
        InvalidData: a path does not exist, or a directory holds no file of a known format.
    """
    until = _Until(time.monotonic() + _SECONDS)
    licenses = {domain.name: domain.license for domain in data.train}
    domains: list[DomainPreview] = []
    warnings: list[str] = []
    cleaner = Cleaner("exact")
    for source in expand_domains(data.train):
        if isinstance(source.source, HubData) and not reads_hub:
            warnings.append(f"{source.name}: only a worker reads from the hub")
            continue
        try:
            found, said = _look(
                *(source, data, tokenizer, cleaner, until),
                license_=licenses[source.group],
                hub_token=hub_token,
            )
        except PruningError as error:
            warnings.append(f"{source.name}: {error.message}")
            continue
        except ImportError as error:
            warnings.append(f"{source.name}: only a worker reads this: {error}")
            continue
        domains.append(found)
        warnings += [f"{source.name}: {one}" for one in said]
    if tokenizer is None:
        warnings.append("no tokenizer is at hand: tokens are guessed as a quarter of the bytes")
    return Preview(
        domains=tuple(domains), tokens_counted=tokenizer is not None, warnings=tuple(warnings)
    )


def _look(
    source: NamedSource,
    data: Data,
    tokenizer: Tokenizer | None,
    cleaner: Cleaner,
    until: _Until,
    *,
    license_: str | None,
    hub_token: str | None,
) -> tuple[DomainPreview, list[str]]:
    report, cleaning = ReadReport(), CleaningReport()
    limit = min(source.max_documents or MAX_DOCUMENTS, MAX_DOCUMENTS)
    stream = read_documents(source.source, report, hub_token=hub_token)
    documents = _bounded(until.in_time(islice(stream, limit)))
    complete = len(documents) == source.max_documents or next(iter(stream), None) is None
    list(cleaner.keep(documents, cleaning))
    num_bytes = sum(len(document.encode("utf-8", "surrogatepass")) for document in documents)
    held_out = 0
    if data.evaluation is None:
        split = split_held_out(documents, data.held_out_fraction)
        held_out = sum(is_held_out for _, is_held_out in split)
    found = DomainPreview(
        name=source.name,
        num_documents=len(documents),
        num_bytes=num_bytes,
        num_tokens=_count_tokens(documents, num_bytes, tokenizer),
        num_held_out=held_out,
        num_malformed=report.num_malformed,
        num_copies=cleaning.num_copies,
        rows=tuple(document[:_ROW_CHARACTERS] for document in documents[:_ROWS]),
        complete=complete,
        weight=source.group_weight,
        license=license_,
    )
    return found, list(_oddities(found, report, data))


def _bounded(documents: Iterator[str]) -> list[str]:
    kept: list[str] = []
    num_characters = 0
    for document in documents:
        kept.append(document)
        num_characters += len(document)
        if num_characters >= _MAX_CHARACTERS:
            break
    return kept


def _count_tokens(documents: list[str], num_bytes: int, tokenizer: Tokenizer | None) -> int:
    """With the end-of-sequence token that follows each document."""
    if tokenizer is None:
        return round(num_bytes / _BYTES_PER_TOKEN) + len(documents)
    total = len(documents)
    for start in range(0, len(documents), _TOGETHER):
        part = documents[start : start + _TOGETHER]
        total += sum(map(len, tokenizer.encode_batch_fast(part, add_special_tokens=False)))
    return total


def _oddities(found: DomainPreview, report: ReadReport, data: Data) -> Iterator[str]:
    checks: tuple[tuple[bool, Callable[[], str]], ...] = (
        (not found.num_documents, lambda: "holds no text"),
        (bool(report.num_malformed), report.summary),
        (
            0 < found.num_documents < _FEW_DOCUMENTS and found.complete,
            lambda: f"only {found.num_documents} documents: most of them may be held out or none",
        ),
        (
            found.num_copies > 0 and data.deduplicate == "none",
            lambda: (
                f"{found.num_copies} of {found.num_documents} documents are copies: "
                "data.deduplicate leaves them out"
            ),
        ),
        (
            not found.complete,
            lambda: f"only the first {found.num_documents} documents were looked at",
        ),
        (found.license is None, lambda: "no license is noted"),
    )
    yield from (say() for holds, say in checks if holds)
