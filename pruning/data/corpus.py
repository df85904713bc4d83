"""The corpus of a run: each domain tokenised into memory-mapped files, with its held-out part."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from pruning.data.chat import Chat
from pruning.data.cleaning import Cleaner, CleaningReport, RunsOfWords
from pruning.data.held_out import content_hash, split_held_out
from pruning.data.sources import NamedSource, ReadReport, expand_domains, read_documents
from pruning.data.tokenizing import DocumentTokenizer
from pruning.data.tokens import Tokens, TokenWriter
from pruning.errors import InvalidData
from pruning.recipe_parts.data import Data, DataSource

_BATCH_DOCUMENTS = 256
_BATCH_CHARACTERS = 1_000_000


Progress = Callable[[int, int], None]
"""Hears of the documents and tokens read so far."""


def say_nothing(_num_documents: int, _num_tokens: int) -> None:
    """Where nobody wants to hear of it."""


@dataclass(frozen=True, kw_only=True)
class DomainTokens:
    """One domain's tokens; every document is closed by the end-of-sequence token.

    Of conversations only what the assistant says is learned: see `pruning.data.tokens`.
    """

    name: str
    weight: float
    train: Tokens
    held_out: Tokens


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """All text of a run. `held_out` are the streams that perplexity is measured on."""

    domains: tuple[DomainTokens, ...]
    held_out: tuple[Tokens, ...]
    fingerprint: str
    warnings: tuple[str, ...]
    removals: tuple[str, ...] = ()

    @property
    def num_train_tokens(self) -> int:
        """Tokens of one pass over all domains."""
        return sum(len(domain.train) for domain in self.domains)


@dataclass(frozen=True, kw_only=True)
class _Limits:
    """No run needs more than these of one domain; reading stops when both are full."""

    train_tokens: float
    held_out_tokens: int


@dataclass(frozen=True, kw_only=True)
class _Read:
    source: NamedSource
    train: Tokens
    held_out: Tokens
    digest: str
    report: ReadReport
    cleaning: CleaningReport


def build_corpus(
    data: Data,
    tokenizer: PreTrainedTokenizerFast,
    directory: Path,
    *,
    max_train_tokens: int | None = None,
    evaluations: RunsOfWords | None = None,
    progress: Progress = say_nothing,
) -> Corpus:
    """Read, clean, split and tokenise the recipe's text into `directory`.

    Each domain is read until it holds `max_train_tokens` (as much as the run trains on in all)
    and its share of `data.max_held_out_tokens`; documents of an explicit evaluation text are
    never trained on, nor are those that share words with `evaluations`. `progress` hears of every
    batch of documents.

    Raises:
        InvalidData: a source cannot be read, is malformed, or no text is left on one side.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tokenize, told = DocumentTokenizer(tokenizer), _Told(progress)
    evaluation = _read_evaluation(data, tokenize, directory, told)
    sources = expand_domains(data.train)
    limits = _Limits(
        train_tokens=max_train_tokens or float("inf"),
        held_out_tokens=0 if evaluation else -(-data.max_held_out_tokens // len(sources)),
    )
    cleaner = Cleaner(data.deduplicate, evaluations=evaluations)
    reads = [
        _read_domain(
            source,
            tokenize,
            cleaner,
            directory / f"{index:03d}",
            fraction=0.0 if evaluation else data.held_out_fraction,
            excluded=evaluation.hashes if evaluation else frozenset(),
            limits=limits,
            told=told,
        )
        for index, source in enumerate(sources)
    ]
    domains = tuple(_weighted(reads))
    held_out = (evaluation.tokens,) if evaluation else tuple(d.held_out for d in domains)
    _check_both_sides(domains, held_out)
    digests = [read.digest for read in reads] + ([evaluation.digest] if evaluation else [])
    return Corpus(
        domains=domains,
        held_out=held_out,
        fingerprint=_fingerprint(tokenizer, data, digests),
        warnings=tuple(
            f"domain {read.source.name}: {read.report.summary()}"
            for read in reads
            if read.report.num_malformed
        ),
        removals=tuple(
            f"domain {read.source.name}: {read.cleaning.summary()}"
            for read in reads
            if read.cleaning.num_removed
        ),
    )


@dataclass
class _Told:
    """Counts what was tokenised, for who wants to hear of it."""

    progress: Progress
    num_documents: int = 0
    num_tokens: int = 0

    def tell(self, ids: list[list[int]]) -> None:
        self.num_documents += len(ids)
        self.num_tokens += sum(map(len, ids))
        self.progress(self.num_documents, self.num_tokens)


@dataclass(frozen=True, kw_only=True)
class _Evaluation:
    tokens: Tokens
    hashes: frozenset[int]
    digest: str


def _read_evaluation(
    data: Data, tokenize: DocumentTokenizer, directory: Path, told: _Told
) -> _Evaluation | None:
    if data.evaluation is None:
        return None
    source: DataSource = data.evaluation
    hashes: set[int] = set()
    digest = hashlib.sha256()
    report = ReadReport()
    render = tokenize.render_for(source)
    with tokenize.writer(directory / "evaluation.bin", source) as writer:
        for document in read_documents(source, report, render=render):
            if writer.num_tokens >= data.max_held_out_tokens:
                break
            hashes.add(content_hash(document))
            encoded = tokenize.encode([document])
            told.tell(encoded)
            digest.update(_hold_out(document, encoded[0], writer, data.max_held_out_tokens))
    report.check("evaluation")
    return _Evaluation(tokens=writer.read(), hashes=frozenset(hashes), digest=digest.hexdigest())


def _read_domain(
    source: NamedSource,
    tokenize: DocumentTokenizer,
    cleaner: Cleaner,
    stem: Path,
    *,
    fraction: float,
    excluded: frozenset[int],
    limits: _Limits,
    told: _Told,
) -> _Read:
    report, cleaning = ReadReport(), CleaningReport()
    digest = hashlib.sha256()
    render = tokenize.render_for(source.source)
    read = islice(read_documents(source.source, report, render=render), source.max_documents)
    documents = cleaner.keep(read, cleaning)
    max_train_tokens = min(limits.train_tokens, source.max_tokens or float("inf"))
    with (
        tokenize.writer(stem.with_suffix(".train.bin"), source.source) as train,
        tokenize.writer(stem.with_suffix(".held_out.bin"), source.source) as held_out,
    ):
        wanted = takewhile(
            lambda _: (
                train.num_tokens < max_train_tokens or held_out.num_tokens < limits.held_out_tokens
            ),
            (
                document
                for document in documents
                if not excluded or content_hash(document) not in excluded
            ),
        )
        for batch in tokenize.encode_ahead(_batches(_split(wanted, fraction))):
            told.tell([ids for _, _, ids in batch])
            for document, is_held_out, ids in batch:
                if is_held_out and held_out.num_tokens < limits.held_out_tokens:
                    digest.update(_hold_out(document, ids, held_out, limits.held_out_tokens))
                elif not is_held_out and train.num_tokens < max_train_tokens:
                    digest.update(_identity(document))
                    train.append(ids)
    report.check(source.name)
    return _Read(
        source=source,
        train=train.read(),
        held_out=held_out.read(),
        digest=digest.hexdigest(),
        report=report,
        cleaning=cleaning,
    )


def _hold_out(document: str, ids: list[int], writer: TokenWriter, limit: int) -> bytes:
    """Write a document up to where the text holds `limit` tokens; the identity of what is kept."""
    kept = ids[: limit - writer.num_tokens]
    writer.append(kept)
    return _identity(document) + (b"cut" if len(kept) < len(ids) else b"")


def _identity(document: str) -> bytes:
    """What is learned of a document depends on."""
    spoken = repr(document.spoken).encode() if isinstance(document, Chat) else b""
    return content_hash(document).to_bytes(8, "big") + spoken


def _split(documents: Iterable[str], fraction: float) -> Iterator[tuple[str, bool]]:
    if fraction:
        return split_held_out(documents, fraction)
    return ((document, False) for document in documents)


def _batches(documents: Iterable[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    batch: list[tuple[str, bool]] = []
    num_characters = 0
    for document, is_held_out in documents:
        batch.append((document, is_held_out))
        num_characters += len(document)
        if len(batch) == _BATCH_DOCUMENTS or num_characters >= _BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


def _weighted(reads: list[_Read]) -> Iterator[DomainTokens]:
    """Weights that sum to 1: a group's own or its share of the tokens, spread over its files."""
    total = max(1, sum(len(read.train) for read in reads))
    of_group: dict[str, int] = {}
    for read in reads:
        of_group[read.source.group] = of_group.get(read.source.group, 0) + len(read.train)
    raw = []
    for read in reads:
        group = max(1, of_group[read.source.group])
        weight = read.source.group_weight
        raw.append((group / total if weight is None else weight) * len(read.train) / group)
    scale = sum(raw) or 1.0
    for read, weight in zip(reads, raw, strict=True):
        yield DomainTokens(
            name=read.source.name,
            weight=weight / scale,
            train=read.train,
            held_out=read.held_out,
        )


def _check_both_sides(domains: tuple[DomainTokens, ...], held_out: tuple[Tokens, ...]) -> None:
    if not sum(len(domain.train) for domain in domains):
        raise InvalidData("no text to train on", param="data.train")
    if not sum(len(tokens) for tokens in held_out):
        raise InvalidData(
            "no text is left to evaluate on",
            param="data",
            hint="Give at least two documents, or data.evaluation.",
        )


def _fingerprint(tokenizer: PreTrainedTokenizerFast, data: Data, digests: list[str]) -> str:
    digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
    digest.update(f"{data.held_out_fraction} {data.max_held_out_tokens}".encode())
    for part in digests:
        digest.update(part.encode())
    return digest.hexdigest()
