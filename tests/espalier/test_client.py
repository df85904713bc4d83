"""Both clients against a real server: what one can do the other can, awaited."""

import asyncio
import hashlib
import inspect
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Timer

import pytest
from typer.testing import CliRunner

from espalier import errors
from espalier.calls import Operation
from espalier.cli import app
from espalier.client import AsyncClient, Client
from espalier.connection import find_connection
from espalier.exit_codes import MEANINGS, exit_code_of
from espalier.operations import Operations
from registry import jobs
from registry.db import transaction
from tests.espalier.conftest import Furnished
from tests.factories import SMALL_REQUEST, start_job, succeed


@pytest.fixture
def client(server: Furnished) -> Iterator[Client]:
    with Client(server.url, server.holder.secret) as client:
        yield client


def finish_soon(server: Furnished, job_id: str) -> Timer:
    """Let the job succeed while somebody waits for it."""

    def finish() -> None:
        with transaction(server.factory) as session:
            job = jobs.lock(session, job_id)
            start_job(session, job)
            job.head_checkpoint_id = server.ids["checkpoint_id"]
            succeed(session, job)

    timer = Timer(0.3, finish)
    timer.start()
    return timer


def test_every_operation_has_its_own_words() -> None:
    found = {name: one for name, one in vars(Operations).items() if isinstance(one, Operation)}
    assert len(found) >= 45
    for name, one in found.items():
        assert one.describe.__name__ == name
        assert one.__doc__, name
        assert "self" not in inspect.signature(one.describe).parameters


def test_a_job_is_made_followed_and_waited_for(client: Client, server: Furnished) -> None:
    job = client.submit({**SMALL_REQUEST, "name": "followed", "metadata": {"team": "nlp"}})
    assert [one.id for one in client.list_jobs(metadata={"team": "nlp"}).data] == [job.id]
    assert [one.id for one in client.list_jobs(name="follow").data] == [job.id]
    timer = finish_soon(server, job.id)
    seen = [event.seq for _, events in client.stream(job.id, poll_seconds=0.05) for event in events]
    timer.join()
    assert seen == list(range(1, len(seen) + 1))
    assert client.wait(job.id).status == "succeeded"


def test_waiting_for_a_job_that_ends_badly_says_so(client: Client) -> None:
    job = client.submit(SMALL_REQUEST)
    client.cancel(job.id)
    with pytest.raises(errors.JobEnded, match="cancelled"):
        client.wait(job.id)


def test_the_awaited_client_does_the_same(server: Furnished, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with AsyncClient(server.url, server.holder.secret) as client:
            made = await asyncio.gather(*(client.submit(SMALL_REQUEST) for _ in range(3)))
            assert len({job.id for job in made}) == 3
            timer = finish_soon(server, made[0].id)
            waited, followed = await asyncio.gather(
                client.wait(made[0].id),
                _last([one async for one in client.stream(made[0].id, poll_seconds=0.05)]),
            )
            timer.join()
            assert waited == followed
            text = tmp_path / "text.txt"
            text.write_text("Some words.")
            sent = await client.upload(text)
            assert sent.sha256 == hashlib.sha256(text.read_bytes()).hexdigest()
            await client.delete_file(sent.id)
            got = await client.download(server.ids["checkpoint_id"], tmp_path / "model")
            assert {file.path for file in got} == {"config.json", "model.safetensors"}
            with pytest.raises(errors.NotFound):
                await client.get("job_0")

    # In a thread of its own: where browser tests ran before, this one has a loop already.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, scenario()).result()


async def _last(found: list[tuple[object, object]]) -> object:
    return found[-1][0]


def test_a_change_insists_on_the_version_it_knows(client: Client) -> None:
    job = client.submit(SMALL_REQUEST)
    changed = client.update(job.id, {"name": "new"}, version=job.version)
    assert changed.name == "new"
    with pytest.raises(errors.Conflict):
        client.update(job.id, {"name": "newer"}, version=job.version)


def test_webhooks_credentials_and_the_audit_log_are_at_hand(client: Client) -> None:
    hook = client.create_webhook("https://example.com/hook", ["job.failed"])
    assert hook.secret is not None
    delivery = client.test_webhook(hook.id)
    assert [one.id for one in client.list_deliveries(hook.id).data] == [delivery.id]
    assert client.redeliver(hook.id, delivery.id).status == "pending"
    assert client.update_webhook(hook.id, {"status": "disabled"}).status == "disabled"
    assert client.rotate_webhook_secret(hook.id).secret != hook.secret
    client.delete_webhook(hook.id)
    stored = client.store_credential("hf_0123456789", name="mine")
    assert stored in client.list_credentials()
    client.delete_credential(stored.id)
    assert client.list_audit(limit=1).data[0].action == "DELETE /v1/credentials/{credential_id}"
    assert client.verify_audit().valid


# --- the command ------------------------------------------------------------------------------


@pytest.fixture
def at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is known of any server."""
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    for name in ("ESPALIER_URL", "ESPALIER_API_KEY", "ESPALIER_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("at_home")
def test_login_keeps_a_key_for_that_server_alone(server: Furnished, tmp_path: Path) -> None:
    run = CliRunner()
    said = run.invoke(app, ["login", server.url], input=f"{server.holder.secret}\n")
    assert said.exit_code == 0, said.output
    assert server.holder.secret not in said.output
    kept = tmp_path / "espalier" / "login.json"
    assert kept.stat().st_mode & 0o077 == 0
    assert "jobs" in run.invoke(app, ["usage"]).output
    assert run.invoke(app, ["usage", "--json"]).output.startswith("{")
    assert find_connection("http://other.example").api_key is None
    assert run.invoke(app, ["logout"]).exit_code == 0
    assert not kept.exists()


@pytest.mark.usefixtures("at_home")
def test_a_key_that_opens_nothing_is_not_kept(server: Furnished, tmp_path: Path) -> None:
    said = CliRunner().invoke(app, ["login", server.url, "--api-key", "pk_wrong_wrong"])
    assert said.exit_code == 4
    assert not (tmp_path / "espalier" / "login.json").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["show", "job_0"], 3), (["list", "--limit", "0"], 2), (["usage"], 0)],
)
def test_the_exit_code_says_what_happened(
    server: Furnished, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: int
) -> None:
    monkeypatch.setenv("ESPALIER_URL", server.url)
    monkeypatch.setenv("ESPALIER_API_KEY", server.holder.secret)
    assert CliRunner().invoke(app, arguments).exit_code == expected


def test_every_exit_code_is_explained() -> None:
    kinds = (errors.NotAuthorized, errors.ServerFailed, errors.ServerUnreachable)
    codes = {exit_code_of(kind.__new__(kind)) for kind in (*kinds, errors.ChecksumMismatch)}
    assert codes <= MEANINGS.keys()
