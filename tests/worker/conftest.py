"""A worker in this process, with a stand-in for the pruning program."""

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pruning.recipe import Recipe
from registry import api_keys, jobs, leases
from registry.db import SessionFactory, reading, transaction
from registry.settings import Settings
from registry.tables import Job, Tenant
from tests.worker.nvml import Nvml
from worker import gpus, runner
from worker.workplace import Workplace, open_workplace

STAND_IN = (sys.executable, "-m", "tests.worker.stand_in")

Submit = Callable[..., str]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """A patient worker of stand-ins: long lease, one slice per job, no pause after failures."""
    return settings.model_copy(
        update={
            "child_command": STAND_IN,
            "backoff_seconds": 0.0,
            "stop_grace_seconds": 10.0,
            "lease_seconds": 6.0,
            "queues": ("default",),
        }
    )


@pytest.fixture
def workplace(settings: Settings) -> Iterator[Workplace]:
    """What a worker process has."""
    place = open_workplace(settings)
    yield place
    place.parking.close()
    place.factory.kw["bind"].dispose()


@pytest.fixture
def tenant(factory: SessionFactory) -> Tenant:
    """The tenant of all jobs."""
    with transaction(factory) as session:
        return api_keys.get_or_create_tenant(session)


@pytest.fixture
def submit(factory: SessionFactory, tenant: Tenant) -> Submit:
    """Submit a job for the stand-in and return its id."""

    def submit_job(increments: int = 3, max_attempts: int = 4, **orders: Any) -> str:
        return submit_stand_in(factory, tenant.id, increments, max_attempts, orders)

    return submit_job


def submit_stand_in(
    factory: SessionFactory,
    tenant_id: str,
    increments: int,
    max_attempts: int,
    orders: dict[str, Any],
    **named: Any,
) -> str:
    """A queued job whose child follows `orders`."""
    request = {
        "model": "/nowhere",
        "target": "30%",
        "data": {"train": {"kind": "inline", "documents": [json.dumps(orders)]}},
        "schedule": {"num_increments": increments},
    }
    with transaction(factory) as session:
        job = jobs.create(
            session,
            tenant_id=tenant_id,
            recipe=Recipe.model_validate(request),
            spec=request,
            max_attempts=max_attempts,
            **named,
        )
        return job.id


def run(workplace: Workplace, job_id: str) -> bool:
    """Work on this very job for one slice, if it can be had; whether it could."""
    with transaction(workplace.factory) as session:
        seconds = workplace.settings.lease_seconds
        lease = leases.acquire(session, job_id, workplace.identity.id, seconds)
    if lease is not None:
        runner.work(workplace, lease)
    return lease is not None


@pytest.fixture
def look(factory: SessionFactory) -> Callable[[str], Job]:
    """The job as it stands; not locked, because a worker in search of work passes over locks."""

    def look_at(job_id: str) -> Job:
        with reading(factory) as session:
            return session.get_one(Job, job_id)

    return look_at


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    """Two GPUs that a child may use."""
    library = Nvml()
    monkeypatch.setattr(gpus, "pynvml", library)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return library


@pytest.fixture
def no_nvml(nvml: Nvml) -> None:
    """A machine without NVIDIA's driver."""
    nvml.present = False
