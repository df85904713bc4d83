"""The logs of attempts: while they grow, once stored, and when only their end is left."""

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from registry import attempts, jobs, leases
from registry.db import SessionFactory, transaction
from registry.failures import Backoff, JobError, record_failure
from registry.leases import Lease
from registry.settings import Settings
from registry.storage import LocalStore
from tests.factories import Holder
from worker.logs import keep_logs
from worker.workplace import Workplace, identify

LINES = "".join(f"line {number}\n" for number in range(1000))


@pytest.fixture
def lease(factory: SessionFactory, job_id: str) -> Lease:
    """A worker's first hold of the job."""
    return take(factory, job_id)


def take(factory: SessionFactory, job_id: str) -> Lease:
    with transaction(factory) as session:
        lease = leases.acquire(session, job_id, "cpu0@test", 60)
    assert lease is not None
    return lease


def write(settings: Settings, lease: Lease, text: str) -> Path:
    path = settings.data_dir / attempts.log_name(lease.job_id, lease.fence)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def fail(factory: SessionFactory, lease: Lease, *, log_tail: str | None = None) -> None:
    error = JobError(code="internal", message="it broke", retryable=False, log_tail=log_tail)
    backoff = Backoff(base_seconds=0, limit_seconds=0)
    with transaction(factory) as session:
        job = leases.guard(session, lease)
        leases.end_attempt(session, job, cause="error", message="it broke", log_tail=log_tail)
        record_failure(session, job, error, cause="error", backoff=backoff)


@pytest.fixture
def workplace(settings: Settings, factory: SessionFactory, store: LocalStore) -> Workplace:
    return Workplace(settings=settings, factory=factory, store=store, identity=identify(settings))


def test_a_growing_log_can_be_followed_by_ranges(
    client: TestClient, settings: Settings, lease: Lease
) -> None:
    path = write(settings, lease, "first\n")
    url = f"/v1/jobs/{lease.job_id}/logs"
    whole = client.get(url)
    assert (whole.text, whole.headers["content-type"]) == ("first\n", "text/plain; charset=utf-8")
    with path.open("a") as log:
        log.write("second\n")
    added = client.get(url, headers={"Range": f"bytes={len(whole.content)}-"})
    assert (added.status_code, added.text) == (206, "second\n")
    assert client.get(url, headers={"Range": "bytes=99-"}).status_code == 416
    assert client.head(url).headers["content-length"] == "13"


@pytest.mark.parametrize("count", [1, 3, 5000])
def test_the_last_lines_can_be_asked_for(
    client: TestClient, settings: Settings, lease: Lease, count: int
) -> None:
    write(settings, lease, LINES)
    answer = client.get(f"/v1/jobs/{lease.job_id}/logs", params={"tail": count})
    assert answer.text == "".join(LINES.splitlines(keepends=True)[-count:])


def test_the_log_of_an_ended_attempt_is_stored_whole(
    client: TestClient,
    settings: Settings,
    factory: SessionFactory,
    lease: Lease,
    workplace: Workplace,
) -> None:
    path = write(settings, lease, LINES)
    keep_logs(workplace, lease.job_id)
    assert path.exists(), "the attempt has not ended"
    fail(factory, lease)
    keep_logs(workplace, lease.job_id)
    assert not path.exists()
    answer = client.get(f"/v1/jobs/{lease.job_id}/logs")
    assert answer.text == LINES
    [attempt] = client.get(f"/v1/jobs/{lease.job_id}/attempts").json()["data"]
    assert (attempt["attempt"], attempt["log_bytes"]) == (1, len(LINES))
    assert client.get(attempt["log_url"]).text == LINES


def test_each_attempt_has_its_own_log(
    client: TestClient, settings: Settings, factory: SessionFactory, lease: Lease
) -> None:
    write(settings, lease, "first")
    fail(factory, lease)
    with transaction(factory) as session:
        jobs.retry(session, jobs.lock(session, lease.job_id))
    write(settings, take(factory, lease.job_id), "second")
    url = f"/v1/jobs/{lease.job_id}/logs"
    assert client.get(url).text == "second"
    assert client.get(url, params={"attempt": 1}).text == "first"
    assert client.get(url, params={"attempt": 3}).status_code == 404


def test_a_failed_job_says_where_its_log_ends(
    client: TestClient, factory: SessionFactory, lease: Lease
) -> None:
    fail(factory, lease, log_tail="Traceback\nMemoryError\n")
    error = client.get(f"/v1/jobs/{lease.job_id}").json()["error"]
    assert client.get(error["log_tail_url"]).text == "Traceback\nMemoryError\n"


def test_a_log_on_another_host_is_not_found_until_the_attempt_has_ended(
    client: TestClient, lease: Lease
) -> None:
    assert client.get(f"/v1/jobs/{lease.job_id}/logs").status_code == 404


def test_another_tenant_finds_no_log(
    client: TestClient, settings: Settings, lease: Lease, stranger: Holder
) -> None:
    write(settings, lease, "secret")
    for part in ("logs", "attempts"):
        answer = client.get(f"/v1/jobs/{lease.job_id}/{part}", headers=stranger.headers)
        assert answer.status_code == 404
