"""The Celery application. A message is a hint that a job may be runnable; the database decides.

So messages are acknowledged early, results are kept nowhere, nothing is ever delayed in the broker,
and whatever the broker loses, repeats or reorders costs time only.
"""

from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from celery import Celery
from kombu.entity import Exchange, Queue

from registry import spool
from registry.outbox import RUN_JOB, Publish
from registry.scheduling import DEFAULT_QUEUE
from registry.settings import Settings
from registry.tables import OutboxMessage

_PUBLISH_TIMEOUT_SECONDS = 3

_REDIS_OPTIONS = {
    # Early acknowledgement does not need it, but the shortest value on a broker wins for all.
    "visibility_timeout": 3600,
    "unacked_restore_interval": 5,
    "unacked_restore_throttle": 1,
    "socket_keepalive": True,
    # A message that cannot be sent stays in the outbox; nobody waits for the broker meanwhile.
    "max_retries": 0,
    "socket_connect_timeout": _PUBLISH_TIMEOUT_SECONDS,
    "health_check_interval": 25,
}


def celery_app(settings: Settings) -> Celery:
    """The application object, for sending and for `celery -A worker.app worker`."""
    queues = settings.queues or (DEFAULT_QUEUE,)
    app = Celery("espalier", set_as_current=False)
    app.conf.update(
        task_acks_late=False,
        task_ignore_result=True,
        result_backend=None,
        task_serializer="json",
        accept_content=["json"],
        task_publish_retry=False,
        task_default_queue=queues[0],
        task_queues=[_queue(name) for name in queues],
        worker_prefetch_multiplier=1,
        worker_pool="threads",
        worker_concurrency=1,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=_PUBLISH_TIMEOUT_SECONDS,
        **_broker(settings.broker_url),
    )
    return app


def _queue(name: str) -> Queue:
    # Without an exchange of its own every queue would be bound to the default one, and get what is
    # meant for others. The filesystem transport makes a file of the exchange's name.
    exchange = Exchange(name.replace(":", "-"))  # type: ignore[no-untyped-call]  # untyped there
    return Queue(name, exchange, routing_key=name)  # type: ignore[no-untyped-call]  # as well


def _broker(url: str) -> dict[str, Any]:
    if urlsplit(url).scheme != "filesystem":
        return {
            "broker_url": url,
            "broker_transport_options": _REDIS_OPTIONS,
            "worker_send_task_events": True,
        }
    root = Path(unquote(urlsplit(url).path))
    messages, control = root / "messages", root / "control"
    for directory in (messages, control):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    spool.register()
    return {
        "broker_url": f"{spool.SCHEME}://localhost",
        "broker_transport_options": {
            "data_folder_in": str(messages),
            "data_folder_out": str(messages),
            "control_folder": str(control),
            # The transport looks once a second otherwise.
            "polling_interval": 0.05,
        },
        # Remote control would poll a mailbox of its own, and leaves its files behind.
        "worker_enable_remote_control": False,
        "worker_send_task_events": False,
    }


def publisher(app: Celery) -> Publish:
    """How `outbox.relay` hands messages to this application's broker."""

    def publish(message: OutboxMessage) -> None:
        app.send_task(
            RUN_JOB,
            args=[message.key],
            queue=_queue(message.payload.get("queue") or DEFAULT_QUEUE),
            ignore_result=True,
            retry=False,
        )

    return publish
