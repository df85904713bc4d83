"""Hints on their way through a broker."""

from datetime import UTC, datetime

import pytest
import redis
from celery import Celery

from registry.queue import celery_app, publisher
from registry.settings import Settings
from registry.tables import OutboxMessage

QUEUES = ("default", "cpu", "gpus:2")


@pytest.fixture(params=["files", "redis"])
def broker(request: pytest.FixtureRequest, settings: Settings) -> Settings:
    """The settings with either kind of broker."""
    if request.param == "files":
        return settings
    url: str = request.getfixturevalue("redis_url")
    redis.Redis.from_url(url).flushdb()
    return settings.model_copy(update={"broker_url": url})


@pytest.fixture(params=["sqlite"])
def database_url(tmp_path) -> str:  # type: ignore[no-untyped-def]
    """None is opened."""
    return f"sqlite:///{tmp_path}/absent.db"


def receive(app: Celery) -> dict[str, int]:
    """How many messages wait in each queue of a worker."""
    found = {}
    with app.connection_for_read() as connection, connection.channel() as channel:
        for name in QUEUES:
            queue = app.amqp.queues[name](channel)
            queue.declare()
            found[name] = 0
            while queue.get(no_ack=True) is not None:
                found[name] += 1
    return found


def test_a_hint_reaches_the_machines_it_is_meant_for_and_no_others(broker: Settings) -> None:
    worker = celery_app(broker.model_copy(update={"queues": QUEUES}))
    assert sum(receive(worker).values()) == 0
    now = datetime.now(UTC)
    send = publisher(celery_app(broker))
    for name in ("gpus:2", "cpu", "gpus:2"):
        send(OutboxMessage(key="job_1", payload={"queue": name}, created_at=now))
    assert receive(worker) == {"default": 0, "cpu": 1, "gpus:2": 2}
