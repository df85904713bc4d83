"""The playground: asked in a page, answered by a worker, over when nobody answers.

That both models answer is shown by `test_end_to_end.py`, on real processes.
"""

import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from registry import playground
from registry.db import SessionFactory, database_now, transaction
from registry.errors import QuotaExceeded
from registry.settings import Settings
from registry.storage import LocalStore
from registry.tables import Checkpoint, Job, PlaygroundRun
from tests.dashboard.conftest import form_token
from tests.factories import Holder, cut, make_checkpoint, make_job, start_job
from tests.pruning.tiny import make_tiny_model, make_tiny_tokenizer
from worker.playground import answer_next
from worker.workplace import Workplace, open_workplace


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny model on disk."""
    directory = tmp_path / "model"
    make_tiny_model().save_pretrained(directory)
    make_tiny_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture
def checkpoint_id(
    factory: SessionFactory, holder: Holder, store: LocalStore, model: Path, tmp_path: Path
) -> str:
    """A checkpoint whose files are those of the model it says it came from."""
    with transaction(factory) as session:
        job = make_job(session, holder.tenant_id, request={"model": str(model)})
        start_job(session, job)
        cut(session, job, 1)
        files = {path.name: path.read_bytes() for path in model.iterdir()}
        return make_checkpoint(session, store, job, tmp_path, files=files).id


@pytest.fixture
def workplace(settings: Settings) -> Iterator[Workplace]:
    place = open_workplace(settings)
    yield place
    place.parking.close()


def job_of(factory: SessionFactory, checkpoint_id: str) -> str:
    with factory() as session:
        return session.get_one(Checkpoint, checkpoint_id).job_id


def ask(browser: TestClient, job_id: str, checkpoint_id: str, **fields: Any) -> Any:
    page = browser.get(f"/jobs/{job_id}/playground").text
    data = {"form_token": form_token(page), "checkpoint": checkpoint_id, "prompt": "The gardener"}
    headers = {"Accept": "text/html"}
    return browser.post(
        f"/jobs/{job_id}/playground", data=data | {"max_tokens": 8} | fields, headers=headers
    )


def test_a_model_that_is_gone_is_an_answer_in_words(
    browser: TestClient,
    factory: SessionFactory,
    workplace: Workplace,
    checkpoint_id: str,
    model: Path,
) -> None:
    job_id = job_of(factory, checkpoint_id)
    ask(browser, job_id, checkpoint_id)
    waiting = browser.get(f"/jobs/{job_id}/playground/answers").text
    assert "waits for a worker" in waiting
    assert "hx-trigger" in waiting
    (model / "config.json").unlink()
    assert answer_next(workplace, threading.Event())
    assert not answer_next(workplace, threading.Event())
    page = browser.get(f"/jobs/{job_id}/playground/answers").text
    assert "has no config.json" in page
    assert "hx-trigger" not in page


def test_what_nobody_answers_is_over(
    browser: TestClient, factory: SessionFactory, workplace: Workplace, checkpoint_id: str
) -> None:
    job_id = job_of(factory, checkpoint_id)
    ask(browser, job_id, checkpoint_id)
    with transaction(factory) as session:
        row = session.query(PlaygroundRun).one()
        row.created_at -= timedelta(seconds=playground.ANSWER_SECONDS + 1)
    assert playground.TIMED_OUT in browser.get(f"/jobs/{job_id}/playground").text
    assert not answer_next(workplace, threading.Event())
    assert ask(browser, job_id, checkpoint_id).status_code == 303


def test_an_answer_that_comes_too_late_changes_nothing(
    factory: SessionFactory, holder: Holder, checkpoint_id: str
) -> None:
    with transaction(factory) as session:
        run_id = playground.ask(
            session, holder.tenant_id, checkpoint_id, prompt="x", max_tokens=1
        ).id
        assert playground.claim(session, "one") is not None
        assert playground.claim(session, "other") is None
        playground.fail(session, run_id, "other", "not mine")
        later = database_now(session) + timedelta(seconds=playground.ANSWER_SECONDS + 1)
        playground.expire(session, later)
        playground.fail(session, run_id, "one", "late")
    with factory() as session:
        assert session.get_one(PlaygroundRun, run_id).error == playground.TIMED_OUT
    with transaction(factory) as session:
        playground.expire(session, later + timedelta(days=2))
    with factory() as session:
        assert session.get(PlaygroundRun, run_id) is None


def test_prompts_and_their_number_are_limited(
    browser: TestClient, factory: SessionFactory, holder: Holder, checkpoint_id: str
) -> None:
    job_id = job_of(factory, checkpoint_id)
    for wrong in (
        {"prompt": ""},
        {"prompt": "x" * (playground.MAX_PROMPT + 1)},
        {"prompt": "a\0b"},
        {"max_tokens": playground.MAX_TOKENS + 1},
        {"checkpoint": "ckpt_1"},
    ):
        assert ask(browser, job_id, checkpoint_id, **wrong).status_code == 422, wrong
    assert ask(browser, job_id, "ckpt_" + "0" * 32).status_code == 404
    for _ in range(playground.MAX_PENDING):
        assert ask(browser, job_id, checkpoint_id).status_code == 303
    assert ask(browser, job_id, checkpoint_id).status_code == 429
    with transaction(factory) as session, pytest.raises(QuotaExceeded):
        playground.ask(session, holder.tenant_id, checkpoint_id, prompt="x", max_tokens=1)


def test_another_tenant_asks_nothing_and_reads_nothing(
    anonymous: TestClient, stranger: Holder, factory: SessionFactory, checkpoint_id: str
) -> None:
    job_id = job_of(factory, checkpoint_id)
    page = anonymous.get("/sign-in").text
    anonymous.post("/sign-in", data={"api_key": stranger.secret, "form_token": form_token(page)})
    assert anonymous.get(f"/jobs/{job_id}/playground").status_code == 404
    assert anonymous.get(f"/jobs/{job_id}/playground/answers").status_code == 404
    token = form_token(anonymous.get("/jobs/new").text)
    data = {"form_token": token, "checkpoint": checkpoint_id, "prompt": "x", "max_tokens": 1}
    with transaction(factory) as session:
        mine = make_job(session, stranger.tenant_id).id
        assert session.get_one(Job, mine)
    assert anonymous.post(f"/jobs/{mine}/playground", data=data).status_code == 404
