"""Answers prompts of the playground, beside whatever job this worker runs.

A thread looks for one each second; the two models are opened and run by a child process of low
priority, which is ended when its time is over.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from sqlalchemy.exc import SQLAlchemyError

from registry import checkpoints, playground
from registry.db import reading
from registry.errors import BlobCorrupt, BlobNotFound, StorageError
from registry.playground import Answer
from registry.tables import Job, PlaygroundRun
from worker.child import child_environment, die_with
from worker.workplace import Workplace

LOOK_SECONDS = 1.0
COMMAND = (sys.executable, "-m", "pruning.generate")
_SHOWN_ERROR = 400
_ANSWER: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])

logger = logging.getLogger(__name__)


class NoAnswer(Exception):
    """The models could not be asked; the message says why."""


class Answering:
    """The thread that answers, from the start of the worker to its end."""

    def __init__(self, workplace: Workplace) -> None:
        self._workplace = workplace
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="playground", daemon=True)

    def start(self) -> None:
        """Begin to look for prompts."""
        self._thread.start()

    def stop(self) -> None:
        """End, giving up the prompt in hand."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(LOOK_SECONDS * 2)

    def _run(self) -> None:
        while not self._over.wait(LOOK_SECONDS) and not self._workplace.stopping.is_set():
            try:
                answer_next(self._workplace, self._over)
            except SQLAlchemyError as error:
                logger.warning("playground: database is away: %s", type(error).__name__)


def answer_next(workplace: Workplace, over: threading.Event) -> bool:
    """Answer the prompt that waits longest; whether there was one."""
    with reading(workplace.factory) as session:
        if not playground.waits(session):
            return False
    me = workplace.identity.id
    run = workplace.apply(lambda session: playground.claim(session, me))
    if run is None:
        return False
    try:
        found = _ask(workplace, run, over)
    except NoAnswer as error:
        message = str(error)
        logger.warning("playground %s: %s", run.id, message)
        workplace.apply(lambda session: playground.fail(session, run.id, me, message))
    else:
        workplace.apply(lambda session: playground.answer(session, run.id, me, found))
    return True


def _ask(workplace: Workplace, run: PlaygroundRun, over: threading.Event) -> Answer:
    with reading(workplace.factory) as session:
        recipe: Mapping[str, Any] = session.get_one(Job, run.job_id).recipe
    workplace.settings.work_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix="playground-", dir=workplace.settings.work_dir
    ) as directory:
        _fetch(workplace, run.checkpoint_id, Path(directory))
        request = {
            "models": [recipe["model"], {"source": "path", "path": directory}],
            "prompt": run.prompt,
            "max_new_tokens": run.max_tokens,
        }
        found = _generate(request, child_environment(os.environ, recipe), over)
    return _read_answer(found)


def _fetch(workplace: Workplace, checkpoint_id: str, directory: Path) -> None:
    """The files that using the model needs."""
    with reading(workplace.factory) as session:
        files = checkpoints.files(session, checkpoint_id)
    try:
        for file in files:
            # Only the model itself: neither its training state nor its exports, one level down.
            if "/" not in file.path:
                workplace.store.fetch(file.sha256, directory / file.path)
    except (BlobNotFound, BlobCorrupt, StorageError, OSError) as error:
        raise NoAnswer(f"the checkpoint cannot be fetched: {error}") from error


def _generate(
    request: Mapping[str, Any], environment: Mapping[str, str], over: threading.Event
) -> bytes:
    process = subprocess.Popen(
        COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(environment),
        start_new_session=True,
        preexec_fn=die_with(os.getpid()),
    )
    try:
        said, complaints = _communicate(process, json.dumps(request).encode(), over)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode != 0:
        last = complaints.decode("utf-8", "replace").strip().rsplit("\n", 1)[-1]
        raise NoAnswer(last[:_SHOWN_ERROR] or f"the models ended with {process.returncode}")
    return said


def _communicate(
    process: "subprocess.Popen[bytes]", written: bytes, over: threading.Event
) -> tuple[bytes, bytes]:
    waited, given = 0.0, written
    while not over.is_set() and waited < playground.ANSWER_SECONDS:
        try:
            return process.communicate(given or None, timeout=LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            waited, given = waited + LOOK_SECONDS, b""
    raise NoAnswer("the worker ended" if over.is_set() else playground.TIMED_OUT)


def _read_answer(said: bytes) -> Answer:
    try:
        found = _ANSWER.validate_json(said)
        (base, pruned), (base_seconds, pruned_seconds) = found["texts"], found["seconds"]
    except (ValidationError, KeyError, ValueError) as error:
        raise NoAnswer("the models said nothing that can be read") from error
    return Answer(
        # No database keeps this character, and models may well write it.
        base_text=str(base).replace("\0", "\N{REPLACEMENT CHARACTER}"),
        pruned_text=str(pruned).replace("\0", "\N{REPLACEMENT CHARACTER}"),
        base_seconds=base_seconds,
        pruned_seconds=pruned_seconds,
    )
