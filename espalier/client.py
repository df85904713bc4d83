"""The REST client: what the `espalier` command, the demo and users' own scripts talk through."""

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from httpx_retries import Retry, RetryTransport

from espalier.connection import find_connection
from espalier.download import OnBytes, download_file
from espalier.errors import JobEnded, ServerUnreachable, raise_for_problem
from espalier.resources import (
    ApiKey,
    ApiKeyPage,
    Checkpoint,
    CheckpointFile,
    CheckpointPage,
    Comparison,
    DownloadUrl,
    Estimate,
    Evaluation,
    EvaluationPage,
    Event,
    EventPage,
    File,
    FilePage,
    FilesPage,
    Frontier,
    Job,
    JobPage,
    Metrics,
    Model,
    ModelAlias,
    ModelPage,
    ModelVersion,
    ModelVersionPage,
    Point,
    Usage,
)
from espalier.upload import upload_file

TRAINING_STATE = "training_state/"
"""Files under this path resume a run; using the model needs none of them."""

_EVENT_PAGE = 100
# Every request this client makes is safe to repeat: a POST carries an idempotency key or asks for a
# state that is the same the second time.
_RETRY = Retry(
    total=4,
    backoff_factor=0.25,
    allowed_methods=["GET", "HEAD", "POST", "DELETE"],
)


class Client:
    """A connection to one Espalier server.

    Without arguments it takes `ESPALIER_URL` and `ESPALIER_API_KEY`, then the server that
    `espalier up` runs on this machine.
    """

    def __init__(
        self, url: str | None = None, api_key: str | None = None, *, timeout_seconds: float = 30
    ) -> None:
        self.connection = find_connection(url, api_key)
        headers = {"User-Agent": "espalier-client"}
        if self.connection.api_key:
            headers["Authorization"] = f"Bearer {self.connection.api_key}"
        self._http = httpx.Client(
            base_url=self.connection.url,
            headers=headers,
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

    # --- jobs --------------------------------------------------------------------------------

    def submit(self, request: Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Create a job. `{"model": …, "target": …, "data": …}` is enough."""
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        response = self._request("POST", "/v1/jobs", json=dict(request), headers=headers)
        return Job.model_validate_json(response.content)

    def estimate(self, request: Mapping[str, Any]) -> Estimate:
        """What the same request to `submit` would lead to; nothing is stored."""
        response = self._request("POST", "/v1/estimates", json=dict(request))
        return Estimate.model_validate_json(response.content)

    def get(self, job_id: str) -> Job:
        """The job as it is now."""
        return Job.model_validate_json(self._request("GET", f"/v1/jobs/{job_id}").content)

    def list_jobs(
        self, *, limit: int = 20, after: str | None = None, status: str | None = None
    ) -> JobPage:
        """A page of jobs, newest first; `after` is the id of the last job of the page before."""
        params = {"limit": limit, "after": after, "status": status}
        given = {name: value for name, value in params.items() if value is not None}
        response = self._request("GET", "/v1/jobs", params=given)
        return JobPage.model_validate_json(response.content)

    def cancel(self, job_id: str) -> Job:
        """Stop the job; its checkpoints stay."""
        return self._act(job_id, "cancel")

    def pause(self, job_id: str) -> Job:
        """Stop the job at its next boundary, so that `resume` goes on from there."""
        return self._act(job_id, "pause")

    def resume(self, job_id: str) -> Job:
        """Queue a paused job again."""
        return self._act(job_id, "resume")

    def retry(self, job_id: str) -> Job:
        """Queue a failed or cancelled job again; it goes on from its last checkpoint."""
        return self._act(job_id, "retry")

    def update(self, job_id: str, changes: Mapping[str, Any], *, version: int | None = None) -> Job:
        """Change name, metadata, priority or limits; with `version` only if it is still that.

        Raises:
            Conflict: the job has changed since.
        """
        headers = {} if version is None else {"If-Match": f'"v{version}"'}
        response = self._request("PATCH", f"/v1/jobs/{job_id}", json=dict(changes), headers=headers)
        return Job.model_validate_json(response.content)

    def delete(self, job_id: str) -> None:
        """Remove an ended job and what it published."""
        self._request("DELETE", f"/v1/jobs/{job_id}")

    def _act(self, job_id: str, action: str) -> Job:
        return Job.model_validate_json(self._request("POST", f"/v1/jobs/{job_id}/{action}").content)

    # --- progress ----------------------------------------------------------------------------

    def events(self, job_id: str, *, after: int = 0) -> EventPage:
        """A page of events with `seq` above `after`, oldest first."""
        params = {"after": after, "limit": _EVENT_PAGE}
        response = self._request("GET", f"/v1/jobs/{job_id}/events", params=params)
        return EventPage.model_validate_json(response.content)

    def stream(
        self, job_id: str, *, after: int = 0, poll_seconds: float = 1.0
    ) -> Iterator[tuple[Job, tuple[Event, ...]]]:
        """The job and what happened since the last look, until it has ended."""
        while True:
            job = self.get(job_id)  # before its events: then none is missing once it has ended
            events = tuple(self._events_since(job_id, after))
            after = events[-1].seq if events else after
            yield job, events
            if job.ended:
                return
            time.sleep(poll_seconds)

    def _events_since(self, job_id: str, after: int) -> Iterator[Event]:
        while page := self.events(job_id, after=after).data:
            yield from page
            after = page[-1].seq
            if len(page) < _EVENT_PAGE:
                return

    def metrics(
        self, job_id: str, *, keys: Sequence[str] = ("loss",), from_step: int = 0
    ) -> Metrics:
        """Training curves from an optimizer step on; long ones come thinned out."""
        params = {"keys": list(keys), "from_step": from_step}
        response = self._request("GET", f"/v1/jobs/{job_id}/metrics", params=params)
        return Metrics.model_validate_json(response.content)

    def logs(self, job_id: str, *, attempt: int | None = None, tail: int | None = None) -> str:
        """What the run printed in an attempt, by default the last; `tail` gives its last lines."""
        given = {"attempt": attempt, "tail": tail}
        params = {name: value for name, value in given.items() if value is not None}
        return self._request("GET", f"/v1/jobs/{job_id}/logs", params=params).text

    def wait(self, job_id: str, *, poll_seconds: float = 1.0) -> Job:
        """Block until the job has succeeded.

        Raises:
            JobEnded: it failed or was cancelled.
        """
        while not (job := self.get(job_id)).ended:
            time.sleep(poll_seconds)
        if job.status != "succeeded":
            raise JobEnded(job)
        return job

    # --- what a job leaves -------------------------------------------------------------------

    def list_checkpoints(self, job_id: str) -> tuple[Checkpoint, ...]:
        """The models the job published so far, in the order of its increments."""
        response = self._request("GET", f"/v1/jobs/{job_id}/checkpoints")
        checkpoints = CheckpointPage.model_validate_json(response.content).data
        return tuple(sorted(checkpoints, key=lambda checkpoint: checkpoint.increment))

    def list_evaluations(self, job_id: str) -> tuple[Evaluation, ...]:
        """Every number the job measured."""
        response = self._request("GET", f"/v1/jobs/{job_id}/evaluations")
        return EvaluationPage.model_validate_json(response.content).data

    def get_checkpoint(self, checkpoint_id: str) -> Checkpoint:
        """One published model."""
        response = self._request("GET", f"/v1/checkpoints/{checkpoint_id}")
        return Checkpoint.model_validate_json(response.content)

    def list_files(self, checkpoint_id: str) -> tuple[CheckpointFile, ...]:
        """The files of a checkpoint with their lengths and digests."""
        response = self._request("GET", f"/v1/checkpoints/{checkpoint_id}/files")
        return FilePage.model_validate_json(response.content).data

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

    def download_url(
        self, checkpoint_id: str, path: str | None = None, *, expires_in_seconds: int = 3600
    ) -> DownloadUrl:
        """A URL that downloads a file, or by default the archive, without a key for a while."""
        body = {"path": path, "expires_in_s": expires_in_seconds}
        response = self._request("POST", f"/v1/checkpoints/{checkpoint_id}/download-url", json=body)
        found = DownloadUrl.model_validate_json(response.content)
        return found.model_copy(update={"url": self.connection.url + found.url})

    # --- files -------------------------------------------------------------------------------

    def upload(self, path: Path, *, on_bytes: OnBytes | None = None) -> File:
        """Send text for jobs to read; the server checks its digest. Name its id as `data`.

        Raises:
            ServerUnreachable: the connection broke more often than is worth going on.
        """
        return upload_file(self._http, path, on_bytes)

    def list_files_sent(self, *, limit: int = 20, after: str | None = None) -> FilesPage:
        """A page of uploaded files, newest first."""
        params: dict[str, Any] = {"limit": limit} | ({"after": after} if after else {})
        response = self._request("GET", "/v1/files", params=params)
        return FilesPage.model_validate_json(response.content)

    def delete_file(self, file_id: str) -> None:
        """Forget an uploaded file."""
        self._request("DELETE", f"/v1/files/{file_id}")

    # --- models ------------------------------------------------------------------------------

    def register_model(self, name: str, *, description: str | None = None) -> Model:
        """A name under which versions are kept."""
        body = {"name": name, "description": description}
        return Model.model_validate_json(self._create("/v1/models", body))

    def list_models(self, *, limit: int = 100, after: str | None = None) -> ModelPage:
        """A page of registered models, by name."""
        params: dict[str, Any] = {"limit": limit} | ({"after": after} if after else {})
        response = self._request("GET", "/v1/models", params=params)
        return ModelPage.model_validate_json(response.content)

    def add_version(
        self, name: str, checkpoint_id: str, *, description: str | None = None
    ) -> ModelVersion:
        """Give a checkpoint the next number of a model; it is kept from now on."""
        body = {"checkpoint": checkpoint_id, "description": description}
        return ModelVersion.model_validate_json(self._create(f"/v1/models/{name}/versions", body))

    def list_versions(self, name: str) -> tuple[ModelVersion, ...]:
        """The versions of a model, newest first."""
        response = self._request("GET", f"/v1/models/{name}/versions")
        return ModelVersionPage.model_validate_json(response.content).data

    def set_alias(
        self, name: str, alias: str, version: int, *, revision: int | None = None
    ) -> ModelAlias:
        """Let an alias name a version; one that exists moves only from the `revision` it is at.

        Raises:
            Conflict: it is at another revision.
        """
        headers = {} if revision is None else {"If-Match": f'"r{revision}"'}
        url = f"/v1/models/{name}/aliases/{alias}"
        response = self._request("PUT", url, json={"version": version}, headers=headers)
        return ModelAlias.model_validate_json(response.content)

    def compare(self, job_ids: Sequence[str]) -> Comparison:
        """Jobs side by side: their measured checkpoints, and where their recipes differ."""
        params = {"jobs": ",".join(job_ids)}
        response = self._request("GET", "/v1/compare", params=params)
        return Comparison.model_validate_json(response.content)

    def frontier(self, model: str) -> tuple[Point, ...]:
        """The measured checkpoints of a base model, smallest first."""
        response = self._request("GET", "/v1/frontier", params={"model": model})
        return Frontier.model_validate_json(response.content).points

    def _create(self, path: str, body: Mapping[str, Any]) -> bytes:
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        return self._request("POST", path, json=body, headers=headers).content

    # --- administration ------------------------------------------------------------------------

    def create_key(
        self, scopes: Sequence[str], *, name: str | None = None, expires_at: datetime | None = None
    ) -> ApiKey:
        """A new API key; its `secret` is shown this once."""
        ends = expires_at.isoformat() if expires_at else None
        body = {"scopes": list(scopes), "name": name, "expires_at": ends}
        return ApiKey.model_validate_json(self._create("/v1/api-keys", body))

    def list_keys(self) -> tuple[ApiKey, ...]:
        """Every API key of the tenant, without secrets."""
        return ApiKeyPage.model_validate_json(self._request("GET", "/v1/api-keys").content).data

    def rotate_key(self, key_id: str, *, overlap_seconds: int = 0) -> ApiKey:
        """A key like that one; the old one works on for `overlap_seconds`."""
        body = {"overlap_s": overlap_seconds}
        response = self._request("POST", f"/v1/api-keys/{key_id}/rotate", json=body)
        return ApiKey.model_validate_json(response.content)

    def revoke_key(self, key_id: str) -> None:
        """Make a key worthless at once."""
        self._request("DELETE", f"/v1/api-keys/{key_id}")

    def usage(self) -> Usage:
        """What the tenant used in the last 30 days, and its quotas."""
        return Usage.model_validate_json(self._request("GET", "/v1/usage").content)

    def _request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        try:
            response = self._http.request(method, path, params=params, json=json, headers=headers)
        except httpx.TransportError as error:
            raise ServerUnreachable(f"{self.connection.url}: {error}") from error
        raise_for_problem(response)
        return response
