"""API keys: made, listed, replaced, revoked. A secret is shown once."""

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from fastapi.responses import JSONResponse

from api.answer_once import IdempotencyKey, answer_once
from api.bodies import Body, json_body
from api.deps import Admin, ReadSession, WriteSession
from api.openapi import body_of, problems
from api.schemas.api_keys import (
    ApiKeyCreate,
    ApiKeyList,
    ApiKeyRead,
    ApiKeyRotate,
    ApiKeySecretRead,
)
from registry import api_keys
from registry.tables import ApiKey, Tenant

router = APIRouter(prefix="/v1/api-keys", tags=["administration"])
_REFUSALS = problems(401, 403, 404, 422)


@router.post(
    "",
    status_code=201,
    response_model=ApiKeySecretRead,
    summary="Make an API key",
    openapi_extra=body_of("ApiKeyCreate"),
    responses=problems(400, 401, 403, 409, 413, 415, 422),
)
def create_api_key(
    who: Admin,
    body: Annotated[Body[ApiKeyCreate], Depends(json_body(ApiKeyCreate))],
    session: WriteSession,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """A key of your tenant. Keep the secret: it is not stored, and a replay does not have it."""

    def create() -> dict[str, object]:
        row, secret = api_keys.create(
            session,
            session.get_one(Tenant, who.tenant_id),
            body.value.scopes,
            name=body.value.name,
            expires_at=body.value.expires_at,
        )
        return _with_secret(row, secret)

    answer = answer_once(
        session,
        tenant_id=who.tenant_id,
        key=idempotency_key,
        path="/v1/api-keys",
        written=body.written,
        create=create,
        secret=("secret",),
    )
    return _secret_response(answer.body, answer.headers)


def _with_secret(row: ApiKey, secret: str) -> dict[str, object]:
    read = ApiKeySecretRead(**_read(row).model_dump(), secret=secret)
    return read.model_dump(mode="json")


def _secret_response(body: dict[str, object], headers: dict[str, str] | None = None) -> Response:
    said = {"Location": f"/v1/api-keys/{body['id']}", "Cache-Control": "no-store"}
    return JSONResponse(body, 201, {**said, **(headers or {})})


@router.get("", summary="List API keys", responses=problems(401, 403, 422))
def list_api_keys(who: Admin, session: ReadSession) -> ApiKeyList:
    """Every key of your tenant, without the secrets."""
    return ApiKeyList(data=[_read(row) for row in api_keys.list_all(session, who.tenant_id)])


@router.get("/{key_id}", summary="Read an API key", responses=_REFUSALS)
def get_api_key(key_id: str, who: Admin, session: ReadSession) -> ApiKeyRead:
    """One key, without its secret."""
    return _read(api_keys.get(session, who.tenant_id, key_id))


@router.post(
    "/{key_id}/rotate",
    status_code=201,
    response_model=ApiKeySecretRead,
    summary="Replace an API key",
    openapi_extra=body_of("ApiKeyRotate", required=False),
    responses=problems(400, 401, 403, 404, 409, 413, 415, 422),
)
def rotate_api_key(
    key_id: str,
    who: Admin,
    body: Annotated[Body[ApiKeyRotate], Depends(json_body(ApiKeyRotate, optional=True))],
    session: WriteSession,
) -> Response:
    """A new key with the same name and scopes; the old one works on for `overlap_s` seconds."""
    overlap = timedelta(seconds=body.value.overlap_s)
    row, secret = api_keys.rotate(
        session, api_keys.get(session, who.tenant_id, key_id), overlap=overlap
    )
    return _secret_response(_with_secret(row, secret))


@router.delete("/{key_id}", status_code=204, summary="Revoke an API key", responses=_REFUSALS)
def revoke_api_key(key_id: str, who: Admin, session: WriteSession) -> None:
    """Make a key, its sessions and its signed URLs worthless at once. Repeating changes nothing."""
    api_keys.revoke(session, api_keys.get(session, who.tenant_id, key_id))


def _read(row: ApiKey) -> ApiKeyRead:
    return ApiKeyRead(
        id=row.id,
        name=row.name,
        prefix=row.prefix,
        scopes=row.scopes,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )
