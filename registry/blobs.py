"""Rows that refer to bytes in the artifact store: what keeps them from being collected."""

from collections.abc import Sequence
from typing import Protocol

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.db import database_now, insert_unless_exists
from registry.errors import BlobNotFound
from registry.tables import Blob


class Named(Protocol):
    """Anything that names stored bytes."""

    @property
    def sha256(self) -> str:
        """What they hash to."""

    @property
    def num_bytes(self) -> int:
        """How many there are."""


def refer_to(session: Session, blobs: Sequence[Named]) -> None:
    """See that every blob has its row, before rows of this transaction name it.

    Raises:
        BlobNotFound: one is being collected; publish it again.
    """
    now = database_now(session)
    # In one order, so that two commits that share blobs do not wait for each other in a circle.
    for sha256, num_bytes in sorted({(blob.sha256, blob.num_bytes) for blob in blobs}):
        values = {"sha256": sha256, "size_bytes": num_bytes, "status": "stored", "created_at": now}
        if insert_unless_exists(session, Blob, values):
            continue
        query = select(Blob.status).where(Blob.sha256 == sha256).with_for_update()
        if session.execute(query).scalar_one_or_none() != "stored":
            raise BlobNotFound(f"blob {sha256} is being deleted")
