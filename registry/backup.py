"""Backups: every table as JSON lines from one snapshot, and the blobs they refer to.

The same files restore into SQLite and into Postgres, so that a backup also moves a service from one
to the other. Values are written through the tables' own column types and read back by them.
"""

import base64
import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Column, Connection, Engine, LargeBinary, Table, func, insert, select

from registry.column_types import UtcDateTime, dump_json
from registry.db import create_engine
from registry.errors import BackupRefused
from registry.migrate import current_revision, migrate
from registry.settings import Settings
from registry.storage import ArtifactStore, LocalStore
from registry.tables import Base, Blob

MANIFEST = "backup.json"
_BATCH = 500


class TableDump(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    num_rows: int
    sha256: str


class BackupManifest(BaseModel):
    """What a backup holds; written last, so that a directory with one is whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = 1
    revision: str
    created_at: datetime
    tables: tuple[TableDump, ...]
    blobs: dict[str, int]
    has_blobs: bool


def backup(
    settings: Settings, store: ArtifactStore, directory: Path, *, with_blobs: bool = True
) -> BackupManifest:
    """Write a backup into a new directory. The service may run meanwhile.

    Raises:
        BackupRefused: the directory holds something.
        BlobNotFound: a blob came and went while the backup was made; make it again.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise BackupRefused(f"{directory} is not empty")
    engine = create_engine(settings)
    try:
        copy = LocalStore(directory / "artifacts")
        if with_blobs:
            # Those dropped between now and the snapshot are not needed, those dropped after it are
            # here already.
            _copy_blobs(_blobs(engine), store, copy)
        manifest = _dump(engine, directory, with_blobs=with_blobs)
        if with_blobs:
            _copy_blobs(manifest.blobs, store, copy)
    finally:
        engine.dispose()
    (directory / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    return manifest


def restore(settings: Settings, store: ArtifactStore, directory: Path) -> BackupManifest:
    """Fill an empty database, and the store, from a backup.

    Raises:
        BackupRefused: the database is not empty, or the backup is not whole.
        BlobCorrupt: a blob of the backup is damaged.
    """
    manifest = _read_manifest(directory)
    migrate(settings, manifest.revision)
    engine = create_engine(settings)
    try:
        names = {dump.name for dump in manifest.tables}
        tables = [table for table in Base.metadata.sorted_tables if table.name in names]
        with engine.connect() as connection:
            for table in tables:
                _require_empty(connection.execution_options(reading=True), table)
        # First the bytes, then the rows that name them.
        if manifest.has_blobs:
            _copy_blobs(manifest.blobs, LocalStore(directory / "artifacts"), store)
        with engine.begin() as connection:
            for table in tables:
                _load(connection, table, directory)
    finally:
        engine.dispose()
    migrate(settings)
    return manifest


# --- tables ---------------------------------------------------------------------------------------


def _dump(engine: Engine, directory: Path, *, with_blobs: bool) -> BackupManifest:
    with engine.connect() as connection:
        snapshot = connection.execution_options(reading=True)
        if engine.dialect.name == "postgresql":
            snapshot = snapshot.execution_options(isolation_level="REPEATABLE READ")
        tables = [_dump_table(snapshot, t, directory) for t in Base.metadata.sorted_tables]
        blobs = _stored_blobs(snapshot)
    return BackupManifest(
        revision=current_revision(engine),
        created_at=datetime.now(UTC),
        tables=tuple(tables),
        blobs=blobs,
        has_blobs=with_blobs,
    )


def _dump_table(connection: Connection, table: Table, directory: Path) -> TableDump:
    query = select(table).order_by(*table.primary_key.columns)
    digest = hashlib.sha256()
    num_rows = 0
    with _path(directory, table).open("wb") as file:
        for row in connection.execution_options(yield_per=_BATCH).execute(query).mappings():
            values = {column.name: _encode(row[column]) for column in table.columns}
            line = dump_json(values).encode() + b"\n"
            digest.update(line)
            file.write(line)
            num_rows += 1
    return TableDump(name=table.name, num_rows=num_rows, sha256=digest.hexdigest())


def _load(connection: Connection, table: Table, directory: Path) -> None:
    rows: Iterable[dict[str, Any]] = _rows(_path(directory, table), table)
    own = [key for key in table.foreign_keys if key.column.table is table]
    for key in own:
        rows = parents_first(list(rows), key.column.name, key.parent.name)
    remaining = iter(rows)
    while batch := list(islice(remaining, _BATCH)):
        # Columns by name: an older backup lacks those that were added since.
        connection.execute(insert(table), batch)


def parents_first(rows: Sequence[dict[str, Any]], key: str, parent: str) -> list[dict[str, Any]]:
    """Rows that refer to rows of their own table, each behind the one it refers to. Pure."""
    by_key = {row[key]: row for row in rows}
    ordered: dict[Any, dict[str, Any]] = {}
    for row in rows:
        line = []
        ancestor: dict[str, Any] | None = row
        while ancestor is not None and ancestor[key] not in ordered:
            line.append(ancestor)
            ancestor = by_key.get(ancestor[parent])
        ordered.update((one[key], one) for one in reversed(line))
    return list(ordered.values())


def _rows(path: Path, table: Table) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for line in file:
            values: Mapping[str, Any] = json.loads(line)
            yield {name: _decode(table.columns[name], value) for name, value in values.items()}


def _encode(value: Any) -> Any:
    match value:
        case datetime():
            return value.isoformat()
        case bytes():
            return base64.b64encode(value).decode()
        case _:
            return value


def _decode(column: Column[Any], value: Any) -> Any:
    if value is None:
        return None
    if isinstance(column.type, UtcDateTime):
        return datetime.fromisoformat(value)
    return base64.b64decode(value) if isinstance(column.type, LargeBinary) else value


def _path(directory: Path, table: Table) -> Path:
    return directory / f"{table.name}.jsonl"


def _require_empty(connection: Connection, table: Table) -> None:
    if connection.execute(select(func.count()).select_from(table)).scalar_one():
        raise BackupRefused(f"the database is not empty: {table.name} has rows")


def _read_manifest(directory: Path) -> BackupManifest:
    try:
        manifest = BackupManifest.model_validate_json((directory / MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        raise BackupRefused(f"{directory} holds no whole backup: {error}") from error
    for dump in manifest.tables:
        with (directory / f"{dump.name}.jsonl").open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != dump.sha256:
                raise BackupRefused(f"{dump.name}.jsonl is not the file that was written")
    return manifest


# --- blobs ----------------------------------------------------------------------------------------


def _blobs(engine: Engine) -> dict[str, int]:
    with engine.connect() as connection:
        return _stored_blobs(connection.execution_options(reading=True))


def _stored_blobs(connection: Connection) -> dict[str, int]:
    query = select(Blob.sha256, Blob.size_bytes).where(Blob.status == "stored")
    return {row.sha256: row.size_bytes for row in connection.execute(query)}


def _copy_blobs(blobs: Mapping[str, int], source: ArtifactStore, target: ArtifactStore) -> None:
    for sha256 in sorted(blobs):
        if not target.exists(sha256):
            with tempfile.TemporaryDirectory() as directory:
                path = Path(directory) / sha256
                source.fetch(sha256, path)
                target.put_file(path)
