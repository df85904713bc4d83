"""Checking, backing up and restoring a service in the middle of a job."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from registry import backup, fsck
from registry.db import SessionFactory, reading
from registry.errors import BackupRefused
from registry.settings import Settings
from registry.status import JobStatus
from registry.storage import LocalStore, store_for
from registry.tables import Base, Job
from tests.conftest import new_postgres_database
from tests.worker.conftest import Submit, run
from tests.worker.history import check_history
from tests.worker.processes import environment_of
from tests.worker.test_runner import submit_interrupted
from worker.workplace import Workplace, open_workplace

Halfway = Callable[[], str]


@pytest.fixture
def halfway(workplace: Workplace, submit: Submit, tmp_path: Path) -> Halfway:
    """A job of which a part is committed."""

    def run_half() -> str:
        job_id = submit_interrupted(submit, tmp_path)
        run(workplace, job_id)
        return job_id

    return run_half


def rows_of(factory: SessionFactory) -> dict[str, list[Any]]:
    with reading(factory) as session:
        return {
            table.name: [
                tuple(r) for r in session.execute(select(table).order_by(*table.primary_key))
            ]
            for table in Base.metadata.sorted_tables
        }


@pytest.fixture(params=["sqlite", "postgres"])
def other(request: pytest.FixtureRequest, settings: Settings, tmp_path: Path) -> Any:
    """Settings of an empty service elsewhere, on either kind of database."""
    fresh = {"data_dir": tmp_path / "other", "artifacts_url": f"file://{tmp_path}/other/artifacts"}
    fresh["broker_url"] = f"filesystem://{tmp_path}/other/broker"
    if request.param == "sqlite":
        fresh["database_url"] = f"sqlite:///{tmp_path}/other/espalier.db"
        yield settings.model_copy(update=fresh)
        return
    with new_postgres_database(request.getfixturevalue("postgres_url")) as url:
        yield settings.model_copy(update={**fresh, "database_url": url})


def test_a_job_goes_on_after_its_service_was_destroyed_and_restored(
    workplace: Workplace,
    settings: Settings,
    other: Settings,
    halfway: Halfway,
    factory: SessionFactory,
    tmp_path: Path,
) -> None:
    job_id = halfway()
    backup.backup(settings, workplace.store, tmp_path / "backup")
    before = rows_of(factory)
    shutil.rmtree(settings.data_dir)

    backup.restore(other, store_for(other.artifacts_url), tmp_path / "backup")
    place = open_workplace(other)
    try:
        assert rows_of(place.factory) == before
        assert fsck.check(place.factory, place.store).is_sound
        run(place, job_id)
        with reading(place.factory) as session:
            assert session.get_one(Job, job_id).status is JobStatus.SUCCEEDED
        check_history(place.factory, place.store, job_id)
    finally:
        place.factory.kw["bind"].dispose()


def test_a_backup_overwrites_nothing(
    workplace: Workplace, settings: Settings, halfway: Halfway, tmp_path: Path
) -> None:
    halfway()
    directory = tmp_path / "backup"
    backup.backup(settings, workplace.store, directory, with_blobs=False)
    with pytest.raises(BackupRefused, match="not empty"):
        backup.backup(settings, workplace.store, directory)
    with pytest.raises(BackupRefused, match="has rows"):
        backup.restore(settings, workplace.store, directory)


def test_a_damaged_backup_is_refused(
    workplace: Workplace, settings: Settings, other: Settings, halfway: Halfway, tmp_path: Path
) -> None:
    halfway()
    directory = tmp_path / "backup"
    backup.backup(settings, workplace.store, directory)
    with (directory / "jobs.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(BackupRefused, match="jobs"):
        backup.restore(other, workplace.store, directory)


def test_parents_come_before_their_children() -> None:
    rows = [{"id": "c", "parent": "b"}, {"id": "a", "parent": None}, {"id": "b", "parent": "a"}]
    ordered = [row["id"] for row in backup.parents_first(rows, "id", "parent")]
    assert ordered == ["a", "b", "c"]


# --- fsck -----------------------------------------------------------------------------------------


def test_what_is_lost_damaged_or_too_much_is_found(
    workplace: Workplace, halfway: Halfway, factory: SessionFactory, tmp_path: Path
) -> None:
    halfway()
    store = workplace.store
    assert isinstance(store, LocalStore)
    assert fsck.check(factory, store).is_sound
    first, second = sorted(entry.sha256 for entry in store.entries())[:2]
    store.path_of(first).unlink()
    store.path_of(second).write_bytes(b"other bytes")
    stray = tmp_path / "stray"
    stray.write_text("of nobody")
    orphan = store.put_file(stray)
    report = fsck.check(factory, store)
    assert (report.missing, report.corrupt, report.orphans) == ([first], [second], [orphan.sha256])
    assert not report.is_sound


def test_the_commands_report_in_json_and_by_exit_code(
    workplace: Workplace, settings: Settings, halfway: Halfway, tmp_path: Path
) -> None:
    halfway()

    def command(*words: str) -> tuple[int, dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, "-m", "registry", *words],
            env=environment_of(settings),
            capture_output=True,
            check=False,
        )
        return done.returncode, json.loads(done.stdout)

    code, said = command("backup", str(tmp_path / "backup"))
    assert (code, said["rows"]["jobs"]) == (0, 1)
    assert command("fsck") == (0, {"sound": True, **command("fsck")[1]})
    store = workplace.store
    assert isinstance(store, LocalStore)
    next(store.root.glob("sha256/*/*")).unlink()
    code, said = command("fsck")
    assert (code, said["sound"], len(said["missing"])) == (1, False, 1)
