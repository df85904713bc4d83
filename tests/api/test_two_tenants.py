"""Two tenants do whatever they can think of, and never see an id of each other.

`ESPALIER_TEST_TENANT_STEPS=10000` takes that many steps instead of a few.
"""

import os
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, assume
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from registry.db import SessionFactory, transaction
from registry.storage import LocalStore
from tests.api.furniture import furnish
from tests.api.test_tenants import _REQUESTS as REQUESTS
from tests.api.test_tenants import operations
from tests.factories import SMALL_REQUEST, make_holder

STEPS = int(os.environ.get("ESPALIER_TEST_TENANT_STEPS", "150"))
STEPS_PER_EXAMPLE = 50 if STEPS < 1000 else 250
_IDS = re.compile(r"(?:ten|key|job|ckpt|eval|evt|file|mdl|wh|dlv|cred|aud)_[0-9a-f]{32}")
# What a tenant has asked for is repeated in its own audit log, foreign ids in a path included.
_OWN_PATHS = re.compile(r'"path":"/v1/[^"]*"')
_KINDS = {
    "job_id": "job",
    "checkpoint_id": "ckpt",
    "file_id": "file",
    "key_id": "key",
    "webhook_id": "wh",
    "delivery_id": "dlv",
    "credential_id": "cred",
}
_HOOK = {"url": "https://example.com/", "events": ["job.created", "job.cancelled"]}
WHO = st.sampled_from((0, 1))
Furnish = Callable[[], tuple[TestClient, dict[str, str]]]


@dataclass
class Taken:
    """Whose every id is that was seen, and how many steps it took to see them."""

    owner: dict[str, str] = field(default_factory=dict)
    steps: int = 0


class TwoTenants(RuleBasedStateMachine):
    """Requests of two tenants against one service; what each is answered is searched for ids."""

    def __init__(self, move_in: Furnish, paths: list[tuple[str, str]], taken: "Taken"):
        super().__init__()
        self.paths = paths
        self.taken = taken
        self.owner = taken.owner
        self.clients, self.things = zip(*(move_in() for _ in range(2)), strict=True)
        self.names = [uuid.uuid4().hex for _ in range(2)]
        self.known: list[list[str]] = [[], []]
        for who in (0, 1):
            self.ask(who, "GET", "/v1/usage")
            for path in ("jobs", "files", "webhooks", "api-keys", "credentials", "audit"):
                self.ask(who, "GET", f"/v1/{path}")

    def ask(self, who: int, method: str, url: str, **sent: Any) -> httpx.Response:
        """A request, and the look for foreign ids in its answer."""
        answer = self.clients[who].request(method, url, **sent)
        assert answer.status_code < 500, f"{method} {url}: {answer.text}"
        said = f"{url} {sent}"
        for found in _IDS.findall(f"{_OWN_PATHS.sub('', answer.text)} {answer.headers}"):
            if found in said:
                continue
            owner = self.owner.setdefault(found, self.names[who])
            assert owner == self.names[who], f"{method} {url} shows {found}"
            if found not in self.known[who]:
                self.known[who].append(found)
        return answer

    def pick(self, data: st.DataObject, who: int, kind: str) -> str:
        """Something that this tenant has seen."""
        found = [one for one in self.known[who] if one.startswith(f"{kind}_")]
        assume(found)
        return data.draw(st.sampled_from(found))

    @invariant()
    def count(self) -> None:
        """One step more was taken."""
        self.taken.steps += 1

    @rule(who=WHO, hook=st.booleans())
    def create_job(self, who: int, hook: bool) -> None:
        self.ask(
            who, "POST", "/v1/jobs", json={**SMALL_REQUEST, **({"webhook": _HOOK} if hook else {})}
        )

    @rule(
        who=WHO,
        made=st.sampled_from(
            [
                ("/v1/webhooks", _HOOK),
                ("/v1/api-keys", {"scopes": ["jobs:read"]}),
                ("/v1/credentials", {"secret": "hf_0123456789"}),
            ]
        ),
    )
    def create(self, who: int, made: tuple[str, dict[str, Any]]) -> None:
        self.ask(who, "POST", made[0], json=made[1])

    @rule(who=WHO, key=st.sampled_from(["one", "two"]), name=st.sampled_from(["a", "b"]))
    def create_under_a_shared_key(self, who: int, key: str, name: str) -> None:
        body = {**SMALL_REQUEST, "name": name}
        self.ask(who, "POST", "/v1/jobs", json=body, headers={"Idempotency-Key": key})

    @rule(who=WHO)
    def upload(self, who: int) -> None:
        self.ask(who, "POST", "/v1/files?name=a.txt", content=b"the same text")

    @rule(who=WHO, data=st.data(), action=st.sampled_from(["cancel", "pause", "resume", "retry"]))
    def steer(self, who: int, data: st.DataObject, action: str) -> None:
        self.ask(who, "POST", f"/v1/jobs/{self.pick(data, who, 'job')}/{action}")

    @rule(
        who=WHO,
        path=st.sampled_from(
            [
                *("jobs", "jobs?q=furni", "jobs?metadata[team]=x", "jobs?status=queued", "files"),
                *("webhooks", "api-keys", "credentials", "models", "audit", "audit/verify"),
                *("usage", "frontier?model=org/tiny", "models/furniture/versions"),
            ]
        ),
    )
    def look_around(self, who: int, path: str) -> None:
        self.ask(who, "GET", f"/v1/{path}")

    @rule(who=WHO, data=st.data())
    def use_what_is_ours(self, who: int, data: st.DataObject) -> None:
        method, path = data.draw(st.sampled_from([p for p in self.paths if p[0] == "get"]))
        assume("/stream" not in path)
        self.ask(who, method.upper(), path.format(**self._filled(data, who, path)))

    @rule(who=WHO, data=st.data())
    def use_what_is_theirs(self, who: int, data: st.DataObject) -> None:
        method, path = data.draw(st.sampled_from(self.paths))
        # Both tenants have a model of that name; only ids can be foreign.
        assume("{name}" not in path)
        sent = REQUESTS.get(f"{method} {path}", {})
        url = path.format(**self._filled(data, 1 - who, path))
        answer = self.ask(who, method.upper(), url, **sent)
        assert answer.status_code == 404, f"{method} {url}: {answer.status_code}"

    @rule(who=WHO, data=st.data())
    def name_what_is_theirs_in_a_body(self, who: int, data: st.DataObject) -> None:
        file_id, ckpt = self.pick(data, 1 - who, "file"), self.pick(data, 1 - who, "ckpt")
        cred, job = self.pick(data, 1 - who, "cred"), self.pick(data, 1 - who, "job")
        gated = {"source": "hub", "id": "org/m", "credential": cred}
        refused = [
            self.ask(who, "POST", "/v1/jobs", json={**SMALL_REQUEST, "data": file_id}),
            self.ask(who, "POST", "/v1/jobs", json={**SMALL_REQUEST, "model": gated}),
            self.ask(who, "POST", "/v1/models/furniture/versions", json={"checkpoint": ckpt}),
            self.ask(who, "GET", f"/v1/compare?jobs={job}"),
            self.ask(who, "GET", f"/v1/jobs?after={job}"),
            self.ask(who, "GET", f"/v1/files?after={file_id}"),
        ]
        assert all(answer.status_code in (400, 404, 422) for answer in refused)

    def _filled(self, data: st.DataObject, who: int, path: str) -> dict[str, str]:
        ids = {name: self.pick(data, who, kind) for name, kind in _KINDS.items() if name in path}
        return {**self.things[who], **ids}


def test_no_id_of_one_tenant_is_ever_visible_to_the_other(
    client: TestClient,
    factory: SessionFactory,
    store: LocalStore,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    opened: list[TestClient] = []

    def move_in() -> tuple[TestClient, dict[str, str]]:
        with transaction(factory) as session:
            holder = make_holder(session, uuid.uuid4().hex)
        mine = TestClient(
            client.app,
            headers=holder.headers,
            raise_server_exceptions=False,
            follow_redirects=False,
        )
        opened.append(mine)
        return mine, furnish(mine, factory, store, holder, tmp_path)

    taken = Taken()
    paths = operations(client.app)  # type: ignore[arg-type]  # The application of the fixture.
    while taken.steps < STEPS:
        run_state_machine_as_test(  # type: ignore[no-untyped-call]  # untyped there
            lambda: TwoTenants(move_in, paths, taken),
            settings=hypothesis_settings(
                max_examples=max(1, (STEPS - taken.steps) // STEPS_PER_EXAMPLE),
                stateful_step_count=STEPS_PER_EXAMPLE,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    assert len(taken.owner) > 50
    record_property("steps", taken.steps)
    for one in opened:
        one.close()
