"""A request under one key happens once and is answered the same way."""

import threading
from datetime import timedelta

import pytest
from sqlalchemy.orm import Session

from registry import idempotency
from registry.db import SessionFactory, database_now, transaction
from registry.errors import IdempotencyInProgress, IdempotencyKeyReused
from registry.idempotency import Replay
from registry.tables import Tenant

PRINT = idempotency.fingerprint("POST", "/v1/jobs", {"a": 1, "b": 2})


def test_the_answer_is_replayed(session: Session, tenant: Tenant) -> None:
    named = {"tenant_id": tenant.id, "key": "k"}
    assert idempotency.begin(session, **named, fingerprint=PRINT) is None
    idempotency.complete(session, **named, status_code=201, response={"id": "job_1"})
    session.flush()
    assert idempotency.begin(session, **named, fingerprint=PRINT) == Replay(201, {"id": "job_1"})


def test_another_request_under_the_key_is_refused(session: Session, tenant: Tenant) -> None:
    idempotency.begin(session, tenant_id=tenant.id, key="k", fingerprint=PRINT)
    with pytest.raises(IdempotencyKeyReused):
        idempotency.begin(session, tenant_id=tenant.id, key="k", fingerprint="0" * 64)


def test_a_request_without_an_answer_is_in_progress(session: Session, tenant: Tenant) -> None:
    idempotency.begin(session, tenant_id=tenant.id, key="k", fingerprint=PRINT)
    with pytest.raises(IdempotencyInProgress):
        idempotency.begin(session, tenant_id=tenant.id, key="k", fingerprint=PRINT)


def test_of_two_at_once_one_acts_and_the_other_replays(
    session: Session, tenant: Tenant, factory: SessionFactory
) -> None:
    session.commit()
    answers: list[Replay | None] = []

    def ask(number: int) -> None:
        with transaction(factory) as own:
            named = {"tenant_id": tenant.id, "key": "k"}
            answer = idempotency.begin(own, **named, fingerprint=PRINT)
            if answer is None:
                idempotency.complete(own, **named, status_code=201, response={"n": number})
            answers.append(answer)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers.count(None) == 1
    assert len({answer.response["n"] for answer in answers if answer}) == 1


def test_key_order_and_spaces_do_not_matter() -> None:
    assert idempotency.fingerprint("POST", "/v1/jobs", {"b": 2, "a": 1}) == PRINT
    assert idempotency.fingerprint("POST", "/v1/jobs", {"b": 2, "a": 2}) != PRINT


def test_keys_are_forgotten(session: Session, tenant: Tenant) -> None:
    idempotency.begin(session, tenant_id=tenant.id, key="k", fingerprint=PRINT)
    assert idempotency.purge(session, database_now(session) + timedelta(seconds=1)) == 1
