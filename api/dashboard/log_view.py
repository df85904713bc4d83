"""A log as the page shows it: its end, narrowed to what is looked for, and what was added since."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel
from sqlalchemy.orm import Session

from api.errors import Problem
from api.logs import AttemptLog, find_log
from registry import attempts
from registry.settings import Settings
from registry.storage import ArtifactStore
from registry.tables import JobAttempt

SHOWN_LINES = 1000
_MAX_PIECE = 1 << 18


class MoreLog(BaseModel):
    """What was added to a log, and how long it is now."""

    text: str
    length: int
    final: bool


@dataclass(frozen=True)
class LogView:
    """The log of one attempt of a job; `log` is None where there is none to be read here."""

    attempts: Sequence[JobAttempt]
    row: JobAttempt | None
    log: AttemptLog | None
    q: str

    @property
    def length(self) -> int:
        """In bytes."""
        return self.log.length if self.log else 0

    @property
    def final(self) -> bool:
        """Whether nothing will be added to it."""
        return self.row is None or (self.log is not None and self.log.final)

    @property
    def text(self) -> str:
        """Its last lines."""
        return self._narrowed(self.log.tail(SHOWN_LINES)) if self.log else ""

    def more(self, after: int) -> MoreLog:
        """What came behind `after` bytes, up to the last whole line."""
        if self.log is None:
            return MoreLog(text="", length=after, final=False)
        start = max(min(after, self.length), self.length - _MAX_PIECE)
        piece = b"".join(self.log.read(start, self.length)) if start < self.length else b""
        if not self.final:
            piece = piece[: piece.rfind(b"\n") + 1]
        ended = self.final or (self.row is not None and self.row.ended_at is not None)
        return MoreLog(text=self._narrowed(piece), length=start + len(piece), final=ended)

    def _narrowed(self, content: bytes) -> str:
        text = content.decode("utf-8", "replace")
        if not self.q:
            return text
        wanted = self.q.lower()
        return "".join(line for line in text.splitlines(keepends=True) if wanted in line.lower())


def view_log(
    session: Session,
    settings: Settings,
    store: ArtifactStore,
    job_id: str,
    attempt: int | None,
    q: str,
) -> LogView:
    """The log of an attempt, of the last one by default.

    Raises:
        NotFound: there was no such attempt.
    """
    rows = attempts.list_for_job(session, job_id)
    if not rows and attempt is None:
        return LogView(rows, None, None, q)
    row = attempts.get(session, job_id, attempt)
    try:
        log: AttemptLog | None = find_log(settings, store, row)
    except Problem:
        log = None  # On another host until the attempt has ended.
    return LogView(rows, row, log, q)
