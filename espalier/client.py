"""The clients: what the `espalier` command, the demo and users' own scripts talk through.

`Client` waits for answers, `AsyncClient` has them awaited; both offer `espalier.operations`.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from httpx_retries import Retry, RetryTransport

from espalier import following
from espalier.calls import Call
from espalier.connection import Connection, find_connection
from espalier.download import OnBytes, download_file
from espalier.errors import ServerUnreachable, raise_for_problem
from espalier.following import Moment, Pause, Script
from espalier.operations import TRAINING_STATE, Operations
from espalier.published import CheckpointFile, File
from espalier.resources import Event, Job
from espalier.upload import upload_file

T = TypeVar("T")

# Every request these clients make is safe to repeat: a POST carries an idempotency key or asks for
# a state that is the same the second time.
_RETRY = Retry(
    total=4,
    backoff_factor=0.25,
    allowed_methods=["GET", "HEAD", "POST", "DELETE"],
)


def _headers(connection: Connection) -> dict[str, str]:
    headers = {"User-Agent": "espalier-client"}
    if connection.api_key:
        headers["Authorization"] = f"Bearer {connection.api_key}"
    return headers


def _finish(response: httpx.Response, call: Call[T]) -> T:
    raise_for_problem(response)
    return call.read(response)


class Client(Operations):
    """A connection to one Espalier server.

    Without arguments it takes `ESPALIER_URL` and `ESPALIER_API_KEY`, then what `espalier login`
    kept, then the server that `espalier up` runs on this machine.
    """

    def __init__(
        self, url: str | None = None, api_key: str | None = None, *, timeout_seconds: float = 30
    ) -> None:
        self.connection = find_connection(url, api_key)
        self._http = httpx.Client(
            base_url=self.connection.url,
            headers=_headers(self.connection),
            timeout=timeout_seconds,
            transport=RetryTransport(retry=_RETRY),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def send(self, call: Call[T], /) -> T:
        """Send a request and read its answer.

        Raises:
            ServerUnreachable: nobody answers.
            ServerProblem: the server refuses it.
        """
        try:
            response = self._http.request(
                call.method,
                call.path,
                params=call.query,
                json=call.json,
                headers=dict(call.headers),
            )
        except httpx.TransportError as error:
            raise ServerUnreachable(f"{self.connection.url}: {error}") from error
        return _finish(response, call)

    def stream(
        self, job_id: str, *, after: int = 0, poll_seconds: float = 1.0
    ) -> Iterator[tuple[Job, tuple[Event, ...]]]:
        """The job and what happened since the last look, until it has ended."""
        for moment in self._play(following.follow(job_id, after=after, poll_seconds=poll_seconds)):
            yield moment.job, moment.events

    def wait(self, job_id: str, *, poll_seconds: float = 1.0) -> Job:
        """Block until the job has succeeded.

        Raises:
            JobEnded: it failed or was cancelled.
        """
        script = self._play(following.wait(job_id, poll_seconds=poll_seconds))
        while True:
            try:
                next(script)
            except StopIteration as end:
                job: Job = end.value
                return job

    def _play(self, script: Script) -> Generator[Moment, None, Job]:
        answer: Any = None
        while True:
            try:
                step = script.send(answer)
            except StopIteration as end:
                job: Job = end.value
                return job
            answer = None
            if isinstance(step, Pause):
                time.sleep(step.seconds)
            elif isinstance(step, Moment):
                yield step
            else:
                answer = self.send(step)

    def download(
        self,
        checkpoint_id: str,
        directory: Path,
        *,
        training_state: bool = False,
        on_bytes: OnBytes | None = None,
    ) -> tuple[CheckpointFile, ...]:
        """Fetch a checkpoint into `directory`, going on where an earlier download stopped.

        Every file is checked against its sha256 before it gets its name.

        Raises:
            ChecksumMismatch: a file hashes to something else, also when fetched anew.
        """
        files = tuple(
            file
            for file in self.list_files(checkpoint_id)
            if training_state or not file.path.startswith(TRAINING_STATE)
        )
        for file in files:
            url = f"/v1/checkpoints/{checkpoint_id}/files/{file.path}"
            download_file(self._http, url, file, directory, on_bytes)
        return files

    def upload(self, path: Path, *, on_bytes: OnBytes | None = None) -> File:
        """Send text for jobs to read; the server checks its digest. Name its id as `data`.

        Raises:
            ServerUnreachable: the connection broke more often than is worth going on.
        """
        return upload_file(self._http, path, on_bytes)


class AsyncClient(Operations):
    """The same connection for programs with an event loop: every method is awaited."""

    def __init__(
        self, url: str | None = None, api_key: str | None = None, *, timeout_seconds: float = 30
    ) -> None:
        self.connection = find_connection(url, api_key)
        self._timeout_seconds = timeout_seconds
        self._http = httpx.AsyncClient(
            base_url=self.connection.url,
            headers=_headers(self.connection),
            timeout=timeout_seconds,
            transport=RetryTransport(retry=_RETRY),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def send(self, call: Call[T], /) -> T:
        """Send a request and read its answer.

        Raises:
            ServerUnreachable: nobody answers.
            ServerProblem: the server refuses it.
        """
        try:
            response = await self._http.request(
                call.method,
                call.path,
                params=call.query,
                json=call.json,
                headers=dict(call.headers),
            )
        except httpx.TransportError as error:
            raise ServerUnreachable(f"{self.connection.url}: {error}") from error
        return _finish(response, call)

    async def stream(
        self, job_id: str, *, after: int = 0, poll_seconds: float = 1.0
    ) -> AsyncIterator[tuple[Job, tuple[Event, ...]]]:
        """The job and what happened since the last look, until it has ended."""
        script = following.follow(job_id, after=after, poll_seconds=poll_seconds)
        async for moment in self._play(script):
            yield moment.job, moment.events

    async def wait(self, job_id: str, *, poll_seconds: float = 1.0) -> Job:
        """Return once the job has succeeded.

        Raises:
            JobEnded: it failed or was cancelled.
        """
        async for _ in self._play(following.wait(job_id, poll_seconds=poll_seconds)):
            pass
        return await self.get(job_id)

    async def _play(self, script: Script) -> AsyncIterator[Moment]:
        answer: Any = None
        while True:
            try:
                step = script.send(answer)
            except StopIteration:
                return
            answer = None
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
            elif isinstance(step, Moment):
                yield step
            else:
                answer = await self.send(step)

    async def download(
        self, checkpoint_id: str, directory: Path, *, training_state: bool = False
    ) -> tuple[CheckpointFile, ...]:
        """Fetch a checkpoint as `Client.download` does: in a thread, since hashing blocks."""

        def fetch() -> tuple[CheckpointFile, ...]:
            with self._blocking() as client:
                return client.download(checkpoint_id, directory, training_state=training_state)

        return await asyncio.to_thread(fetch)

    async def upload(self, path: Path) -> File:
        """Send text for jobs to read as `Client.upload` does: in a thread, since hashing blocks."""

        def send() -> File:
            with self._blocking() as client:
                return client.upload(path)

        return await asyncio.to_thread(send)

    def _blocking(self) -> Client:
        url, api_key = self.connection.url, self.connection.api_key
        return Client(url, api_key, timeout_seconds=self._timeout_seconds)
