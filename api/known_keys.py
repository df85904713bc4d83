"""API keys, looked up in the database once in a few seconds and not for every request."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import event
from sqlalchemy.orm import Session

from registry import api_keys
from registry.db import SessionFactory, database_now, reading, transaction
from registry.tables import ApiKey

REMEMBERED_SECONDS = 5.0
"""A key that another process revoked works here for no longer."""
_MANY = 10_000
_CHANGED = "an API key was changed"
# Writing takes SQLite's one write lock, so that most requests must not.
_USE_RECORDED_EVERY = timedelta(minutes=1)


@dataclass(frozen=True)
class _Known:
    key: ApiKey
    until: float


class KnownKeys:
    """The keys that were used last; only what was valid is remembered."""

    def __init__(
        self, sessions: SessionFactory, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sessions = sessions
        self._clock = clock
        self._known: dict[bytes, _Known] = {}
        event.listen(sessions, "after_flush", _note_changed_keys)
        event.listen(sessions, "after_commit", self._forget_changed)

    def recall(self, secret: str) -> ApiKey | None:
        """The key that this secret opens, if it was looked up just now."""
        known = self._known.get(_digest(secret))
        return known.key if known is not None and self._clock() < known.until else None

    def look_up(self, secret: str) -> ApiKey:
        """The key that this secret opens, by the database; its use is noted.

        Raises:
            InvalidApiKey: it opens none.
        """
        # Before the look: who is told to forget a key meanwhile must not find it here afterwards.
        known, at = self._known, self._clock()
        with reading(self._sessions) as session:
            key = api_keys.authenticate(session, secret)
            now = database_now(session)
        if key.last_used_at is None or now - key.last_used_at >= _USE_RECORDED_EVERY:
            with transaction(self._sessions) as session:
                api_keys.record_use(session, key)
        left = (key.expires_at - now).total_seconds() if key.expires_at else REMEMBERED_SECONDS
        if len(known) < _MANY:
            known[_digest(secret)] = _Known(key, at + min(left, REMEMBERED_SECONDS))
        else:
            self.forget()
        return key

    def forget(self) -> None:
        """Ask the database again for every key."""
        self._known = {}

    def _forget_changed(self, session: Session) -> None:
        if session.info.pop(_CHANGED, False):
            self.forget()


def _note_changed_keys(session: Session, _flushed: object) -> None:
    if any(isinstance(row, ApiKey) for row in session.dirty):
        session.info[_CHANGED] = True


def _digest(secret: str) -> bytes:
    # The secrets themselves are not kept, not even in memory.
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
