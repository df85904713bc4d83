"""The outbox: a message is sent after its commit, at least once, broker or no broker."""

import json
from datetime import timedelta
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry import outbox
from registry.db import SessionFactory, database_now, transaction
from registry.outbox import RUN_JOB
from registry.queue import celery_app, publisher
from registry.settings import Settings
from registry.tables import OutboxMessage
from tests.registry.conftest import MakeJob
from tests.servers import free_port


def unsent(session: Session) -> list[OutboxMessage]:
    return list(session.scalars(select(OutboxMessage).where(OutboxMessage.sent_at.is_(None))))


def test_messages_are_kept_while_the_broker_is_down(
    session: Session, make_job: MakeJob, settings: Settings
) -> None:
    for _ in range(3):
        make_job()
    down = settings.model_copy(update={"broker_url": f"redis://127.0.0.1:{free_port()}/0"})
    assert outbox.relay(session, publisher(celery_app(down))) == 0
    assert len(unsent(session)) == 3
    sent: list[OutboxMessage] = []
    assert outbox.relay(session, sent.append) == 3
    assert unsent(session) == []


def test_a_rolled_back_job_is_never_hinted(
    session: Session, make_job: MakeJob, factory: SessionFactory
) -> None:
    make_job()
    session.rollback()
    with transaction(factory) as other:
        assert unsent(other) == []


def test_a_message_waits_for_its_time(session: Session, make_job: MakeJob) -> None:
    job = make_job()
    outbox.relay(session, lambda _: None)
    outbox.hint(session, job, available_at=database_now(session) + timedelta(minutes=1))
    assert outbox.relay(session, lambda _: None) == 0


def test_a_message_holds_the_job_s_id_and_nothing_else(
    session: Session, make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job()
    settings = Settings(data_dir=tmp_path / "other")
    outbox.relay(session, publisher(celery_app(settings)))
    [path] = (settings.data_dir / "broker" / "messages").glob("*.msg")
    message = json.loads(path.read_text())
    assert message["headers"]["task"] == RUN_JOB
    assert message["headers"]["argsrepr"] == repr([job.id])
    assert message["content-type"] == "application/json"


def test_old_messages_are_forgotten(session: Session, make_job: MakeJob) -> None:
    make_job()
    outbox.relay(session, lambda _: None)
    assert outbox.purge(session, database_now(session) - timedelta(hours=1)) == 0
    session.flush()
    assert outbox.purge(session, database_now(session) + timedelta(hours=1)) == 1
