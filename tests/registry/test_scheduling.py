"""Whose turn it is."""

from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from pruning.recipe import Recipe
from registry import api_keys, jobs, leases, quotas, scheduling
from registry.quotas import Quotas
from registry.settings import Settings
from registry.tables import Job, Tenant
from tests.registry.conftest import REQUEST, MakeJob
from worker.machine import count_gpus, with_queues

ALL = ("default", "cpu", "gpu", "gpus:2")


def submit(session: Session, tenant: Tenant, **named: object) -> Job:
    request = {**REQUEST, **named.pop("request", {})}  # type: ignore[dict-item]
    recipe = Recipe.model_validate(request)
    job = jobs.create(session, tenant_id=tenant.id, recipe=recipe, spec=request, **named)  # type: ignore[arg-type]
    return jobs.get(session, tenant.id, job.id)


def claimed(session: Session, *queues: str) -> str | None:
    lease = leases.acquire_next(session, queues or ALL, "w", 60)
    return lease.job_id if lease else None


@pytest.mark.parametrize(
    ("wanted", "queue"),
    [({}, "default"), ({"processes": 2}, "cpu"), ({"gpus": 1}, "gpu"), ({"gpus": 4}, "gpus:4")],
)
def test_a_job_waits_for_machines_that_can_run_it(
    session: Session, tenant: Tenant, wanted: dict[str, int], queue: str
) -> None:
    assert submit(session, tenant, request=wanted).queue == queue


def test_a_worker_takes_nothing_that_its_machine_cannot_run(
    session: Session, tenant: Tenant
) -> None:
    large = submit(session, tenant, request={"gpus": 2}, priority=9)
    small = submit(session, tenant)
    assert claimed(session, "default", "cpu") == small.id
    assert claimed(session, "default", "cpu") is None
    assert claimed(session, *scheduling.queues_of(2)) == large.id


def test_a_machine_serves_runs_of_up_to_all_its_gpus() -> None:
    assert scheduling.queues_of(0) == ("default", "cpu")
    assert scheduling.queues_of(1) == ("default", "cpu", "gpu")
    assert scheduling.queues_of(3) == ("default", "cpu", "gpu", "gpus:2", "gpus:3")


def test_a_worker_serves_what_its_children_will_see(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"0000:0{number}:00.0").mkdir()
    assert count_gpus({}, tmp_path) == 4
    assert count_gpus({"CUDA_VISIBLE_DEVICES": "1,3"}, tmp_path) == 2
    assert count_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == 0
    assert count_gpus({"CUDA_VISIBLE_DEVICES": "0"}, tmp_path / "absent") == 0


def test_queues_that_the_operator_names_are_kept() -> None:
    assert with_queues(Settings(queues=("gpu",)), {}).queues == ("gpu",)
    assert with_queues(Settings(child_device="cpu"), {}).queues == ("default", "cpu")


def test_higher_priority_goes_first_and_then_who_waits_longest(
    session: Session, tenant: Tenant
) -> None:
    submitted = [submit(session, tenant, priority=p) for p in (0, 5, 0, 5)]
    order = [claimed(session) for _ in submitted]
    assert order == [submitted[i].id for i in (1, 3, 0, 2)]


def test_tenants_share_the_workers_however_many_jobs_one_has(
    session: Session, tenant: Tenant
) -> None:
    other = api_keys.get_or_create_tenant(session, "other")
    many = [submit(session, tenant) for _ in range(4)]
    few = [submit(session, other) for _ in range(2)]
    order = [claimed(session) for _ in range(6)]
    assert order == [many[0].id, few[0].id, many[1].id, few[1].id, many[2].id, many[3].id]


def test_a_tenant_at_its_limit_does_not_hold_up_the_others(
    session: Session, tenant: Tenant
) -> None:
    quotas.set_quotas(tenant, Quotas(max_running=1))
    other = api_keys.get_or_create_tenant(session, "other")
    first, _ = submit(session, tenant, priority=9), submit(session, tenant, priority=9)
    theirs = submit(session, other)
    assert [claimed(session) for _ in range(3)] == [first.id, theirs.id, None]


def test_a_running_job_makes_room_for_a_higher_one_that_no_free_worker_took(
    session: Session, tenant: Tenant
) -> None:
    running = [submit(session, tenant, priority=p) for p in (1, 0)]
    assert {claimed(session), claimed(session)} == {job.id for job in running}
    waiting = submit(session, tenant, priority=5)
    assert not scheduling.is_outranked(session, running[1].id, ALL)
    waiting.num_hints = 1
    session.flush()
    assert scheduling.is_outranked(session, running[1].id, ALL)
    assert not scheduling.is_outranked(session, running[0].id, ALL)


def test_one_job_alone_makes_room_until_the_worker_it_freed_has_had_its_time(
    session: Session, tenant: Tenant
) -> None:
    higher, lower = (submit(session, tenant, priority=p) for p in (1, 0))
    held = {}
    while lease := leases.acquire_next(session, ALL, "worker", 30):
        held[lease.job_id] = lease
    waiting = submit(session, tenant, priority=5)
    waiting.num_hints = 1
    session.flush()
    leases.release(session, held[lower.id], cause=leases.PREEMPTED)
    assert not scheduling.is_outranked(session, higher.id, ALL)
    waiting.num_hints += 1
    session.flush()
    assert scheduling.is_outranked(session, higher.id, ALL)


@pytest.mark.parametrize(("limit", "outranked"), [(2, False), (3, True)])
def test_nothing_makes_room_for_a_job_that_its_tenant_may_not_run(
    session: Session, tenant: Tenant, make_job: MakeJob, limit: int, outranked: bool
) -> None:
    other = api_keys.get_or_create_tenant(session, "other")
    for _ in range(2):
        submit(session, tenant, priority=9)
    mine = submit(session, other)
    for _ in range(3):
        assert claimed(session)
    quotas.set_quotas(tenant, Quotas(max_running=limit))
    submit(session, tenant, priority=9).num_hints = 1
    session.flush()
    assert scheduling.is_outranked(session, mine.id, ALL) is outranked


def test_equals_do_not_make_room_for_each_other(session: Session, tenant: Tenant) -> None:
    running = submit(session, tenant)
    assert claimed(session) == running.id
    submit(session, tenant).num_hints = 1
    session.flush()
    assert not scheduling.is_outranked(session, running.id, ALL)
