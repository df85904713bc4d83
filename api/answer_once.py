"""Creating under an `Idempotency-Key`: the same request again gets the answer it got."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Header
from pydantic import BaseModel, Field

from registry import idempotency
from registry.db import session_on
from registry.prepared import Reader

_KEY = r"^[\x21-\x7e]{1,255}$"
_DESCRIPTION = "Sending the same request again under the same key gets the same answer."

IdempotencyKey = Annotated[str | None, Header(pattern=_KEY, description=_DESCRIPTION)]


class CreatedOnce(BaseModel):
    """The same for a route that reads its headers by itself (`api.parameters`)."""

    idempotency_key: str | None = Field(
        None,
        alias="idempotency-key",
        title="Idempotency-Key",
        pattern=_KEY,
        description=_DESCRIPTION,
    )


@dataclass(frozen=True)
class Answer:
    """What is answered, and whether it was before."""

    body: dict[str, Any]
    replayed: bool

    @property
    def headers(self) -> dict[str, str]:
        """The header that tells a replay."""
        return {"Idempotency-Replayed": "true"} if self.replayed else {}


def answer_once(
    writer: Reader,
    *,
    tenant_id: str,
    key: str | None,
    path: str,
    written: object,
    create: Callable[[], dict[str, Any]],
    secret: tuple[str, ...] = (),
) -> Answer:
    """What `create` answers, or what it answered the first time under this key.

    The field at the path `secret` is shown once: it is not kept, and null in a replay.

    Raises:
        IdempotencyConflict: the key was used for another request, or this one is being answered.
    """
    if key is None:
        return Answer(create(), replayed=False)
    fingerprint = idempotency.fingerprint("POST", path, written)
    with session_on(writer) as session:
        replay = idempotency.begin(session, tenant_id=tenant_id, key=key, fingerprint=fingerprint)
    if replay is not None:
        return Answer(replay.response, replayed=True)
    body = create()
    kept = _without(body, secret)
    with session_on(writer) as session:
        idempotency.complete(session, tenant_id=tenant_id, key=key, status_code=201, response=kept)
    return Answer(body, replayed=False)


def _without(body: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    if not path or body.get(path[0]) is None:
        return body
    rest = path[1:]
    return {**body, path[0]: _without(body[path[0]], rest) if rest else None}
