"""Text from wherever a recipe says it lies, as a stream of documents; a conversation is one.

`.txt` (blank-line blocks, gathered to pages), `.jsonl`, `.parquet`, the first two also as `.gz` or
`.zst`; a directory holds one domain per file; a hub dataset is streamed.
"""

import gzip
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import zstandard

from pruning.errors import InvalidData
from pruning.recipe_parts.data import (
    CheckpointData,
    DataSource,
    Domain,
    HubData,
    InlineData,
    PathData,
    UploadData,
)

_COMPRESSIONS = (".gz", ".zst")
_FORMATS = (".txt", ".md", ".jsonl", ".parquet")
_KNOWN_FORMATS = f"Known formats: {', '.join(_FORMATS)}, also as {' or '.join(_COMPRESSIONS)}."
_PAGE_CHARACTERS = 4096
"""Blocks of a plain text file are gathered into documents of about this length."""

_MAX_PAGE_CHARACTERS = 1 << 20
"""Longer text without a blank line is cut at a line, or it would be held whole."""

Render = Callable[[Sequence[Mapping[str, Any]]], str]
"""How a conversation becomes a document."""

_MAX_EXAMPLES = 3
_MALFORMED_ALLOWANCE = 10
_MALFORMED_FRACTION = 0.01


@dataclass
class ReadReport:
    """What reading one domain met."""

    num_rows: int = 0
    num_malformed: int = 0
    examples: list[str] = field(default_factory=list)

    def malformed(self, reason: str) -> None:
        """Count one row that could not be used; the first few reasons are kept."""
        self.num_malformed += 1
        if len(self.examples) < _MAX_EXAMPLES:
            self.examples.append(f"row {self.num_rows}: {reason}")

    def summary(self) -> str:
        """One sentence for a person."""
        return f"{self.num_malformed} of {self.num_rows} rows unusable ({'; '.join(self.examples)})"

    def check(self, name: str) -> None:
        """Refuse a domain with too many malformed rows.

        Raises:
            InvalidData: more than 10 rows and more than 1 % of them could not be used.
        """
        if self.num_malformed > max(_MALFORMED_ALLOWANCE, _MALFORMED_FRACTION * self.num_rows):
            raise InvalidData(
                f"domain {name}: {self.summary()}",
                param="data.train",
                hint="At most 1 % of the rows may be malformed.",
            )


@dataclass(frozen=True, kw_only=True)
class NamedSource:
    """One stream of text; a directory becomes several that share their `group`'s weight."""

    name: str
    source: DataSource
    group: str
    group_weight: float | None
    max_documents: int | None
    max_tokens: int | None = None


def expand_domains(domains: tuple[Domain, ...]) -> tuple[NamedSource, ...]:
    """The recipe's domains, every directory replaced by its files, each named by its stem.

    Raises:
        InvalidData: a path does not exist, or a directory holds no file of a known format.
    """
    expanded = [
        NamedSource(
            name=name,
            source=source,
            group=domain.name,
            group_weight=domain.weight,
            max_documents=domain.max_documents,
            max_tokens=domain.max_tokens,
        )
        for domain in domains
        for name, source in _files_of(domain, alone=len(domains) == 1)
    ]
    return tuple(expanded)


def _files_of(domain: Domain, *, alone: bool) -> Iterator[tuple[str, DataSource]]:
    source = domain.source
    if not isinstance(source, PathData) or not Path(source.path).is_dir():
        yield domain.name, source
        return
    files = [path for path in sorted(Path(source.path).iterdir()) if _format_of(path)]
    if not files:
        raise InvalidData(
            f"{source.path}: no file with text in it",
            param="data.train",
            hint=_KNOWN_FORMATS,
        )
    stems = [_stem(path) for path in files]
    for path, stem in zip(files, stems, strict=True):
        name = stem if stems.count(stem) == 1 else path.name
        yield (
            (name if alone else f"{domain.name}.{name}"),
            source.model_copy(update={"path": str(path)}),
        )


def _format_of(path: Path) -> str | None:
    suffix = path.with_suffix("").suffix if path.suffix in _COMPRESSIONS else path.suffix
    return suffix if suffix in _FORMATS and not path.name.startswith(".") else None


def _stem(path: Path) -> str:
    return path.with_suffix("").stem if path.suffix in _COMPRESSIONS else path.stem


def as_plain_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """A conversation for a person to read, or to compare its words."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def read_documents(
    source: DataSource,
    report: ReadReport,
    *,
    render: Render = as_plain_text,
    hub_token: str | None = None,
) -> Iterator[str]:
    """The non-empty documents of one source, streamed; unusable rows are counted in `report`.

    Conversations become text by `render`, which raises ValueError for one that it cannot take.
    Gated datasets open by `hub_token`, or by that of this process's environment.

    Raises:
        InvalidData: the source is missing, of unknown format, or has no such text field.
    """
    if isinstance(source, InlineData):
        documents = _read_inline(source, report)
    elif isinstance(source, HubData):
        documents = _documents(_hub_rows(source, hub_token), source, report, render)
    elif isinstance(source, UploadData):
        raise InvalidData(f"{source.file}: only a worker can fetch uploads", param="data.train")
    elif isinstance(source, CheckpointData):
        raise InvalidData(f"{source.id}: only the service knows its text", param="data.train")
    else:
        documents = _read_path(source, report, render)
    return (document for document in documents if document.strip())


def _read_inline(source: InlineData, report: ReadReport) -> Iterator[str]:
    for document in source.documents:
        report.num_rows += 1
        yield document


def _hub_rows(source: HubData, token: str | None) -> Iterator[object]:
    # Imported here: opening `datasets` takes seconds that local text need not wait for.
    import datasets

    try:
        rows = datasets.load_dataset(
            source.id,
            source.config,
            split=source.split,
            revision=source.revision,
            streaming=True,
            token=token,
        )
    except (datasets.exceptions.DatasetNotFoundError, ValueError, FileNotFoundError) as error:
        raise InvalidData(f"dataset {source.id}: {error}", param="data.train") from error
    yield from rows


def _read_path(source: PathData, report: ReadReport, render: Render) -> Iterator[str]:
    path = Path(source.path)
    if not path.is_file():
        raise InvalidData(f"{path}: no such file or directory", param="data.train")
    try:
        yield from _read_file(path, source, report, render)
    except (OSError, EOFError, zstandard.ZstdError, ValueError) as error:
        raise InvalidData(f"{path}: cannot be read: {error}", param="data.train") from error


def _read_file(path: Path, source: PathData, report: ReadReport, render: Render) -> Iterator[str]:
    match _format_of(path):
        case ".txt" | ".md":
            yield from _pages(path, report)
        case ".jsonl":
            yield from _documents(_json_rows(path, report), source, report, render)
        case ".parquet":
            rows = _parquet_rows(path, source)
            yield from _documents(rows, source, report, render)
        case _:
            raise InvalidData(
                f"{path}: unknown format",
                param="data.train",
                hint=_KNOWN_FORMATS,
            )


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if path.suffix == ".zst":
        return cast(IO[bytes], io.BufferedReader(zstandard.open(path, "rb")))
    return path.open("rb")


def _pages(path: Path, report: ReadReport) -> Iterator[str]:
    page: list[str] = []
    num_characters = 0
    with _open(path) as file:
        for line in file:
            report.num_rows += 1
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                report.malformed(str(error))
                continue
            if not text.strip() and num_characters >= _PAGE_CHARACTERS:
                yield "".join(page)
                page, num_characters = [], 0
                continue
            page.append(text)
            num_characters += len(text)
            if num_characters >= _MAX_PAGE_CHARACTERS:
                yield "".join(page)
                page, num_characters = [], 0
    yield "".join(page)


def _json_rows(path: Path, report: ReadReport) -> Iterator[object]:
    with _open(path) as file:
        for line in file:
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except ValueError as error:
                report.num_rows += 1
                report.malformed(f"not JSON: {error}")


def _parquet_rows(path: Path, source: PathData) -> Iterator[object]:
    # Imported here for the same reason as `datasets`.
    import pyarrow.parquet  # type: ignore[import-untyped]  # ships no stubs

    with pyarrow.parquet.ParquetFile(path) as table:
        names: list[str] = table.schema_arrow.names
        field_name = source.messages_field or source.text_field
        if field_name not in names:
            raise InvalidData(
                f"{path}: no column {field_name!r}",
                param="data.train",
                hint=f"Columns: {', '.join(names)}; set text_field or messages_field.",
            )
        for batch in table.iter_batches(batch_size=256, columns=[field_name]):
            yield from batch.to_pylist()


def _documents(
    rows: Iterator[object], source: HubData | PathData, report: ReadReport, render: Render
) -> Iterator[str]:
    if source.messages_field is None:
        return _texts(rows, source.text_field, report)
    return _chats(rows, source.messages_field, report, render)


def _chats(
    rows: Iterator[object], messages_field: str, report: ReadReport, render: Render
) -> Iterator[str]:
    for row in rows:
        report.num_rows += 1
        try:
            messages = row.get(messages_field) if isinstance(row, dict) else row
            document = render(_checked(messages))
        except ValueError as error:
            report.malformed(f"{messages_field}: {error}")
            continue
        yield document


def _checked(messages: object) -> list[dict[str, Any]]:
    """Messages as every chat template takes them.

    Raises:
        ValueError: naming the message that is none.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"not a list of messages but {type(messages).__name__}")
    for index, message in enumerate(messages):
        said = (
            [message.get(key) for key in ("role", "content")] if isinstance(message, dict) else []
        )
        if not said or not all(isinstance(part, str) for part in said):
            raise ValueError(f"message {index} has no role and content that are texts")
    return messages


def _texts(rows: Iterator[object], text_field: str, report: ReadReport) -> Iterator[str]:
    for row in rows:
        report.num_rows += 1
        text = cast(dict[str, Any], row).get(text_field) if isinstance(row, dict) else row
        if isinstance(text, str):
            yield text
        elif isinstance(row, dict) and text_field not in row:
            report.malformed(f"no field {text_field!r} among {', '.join(sorted(map(str, row)))}")
        else:
            report.malformed(f"{text_field} is {type(text).__name__}, not text")
