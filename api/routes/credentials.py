"""Credentials: secrets for gated models, stored sealed and named by their id in jobs."""

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from fastapi.responses import JSONResponse

from api.bodies import Body, json_body
from api.deps import Admin, ReadSession, SettingsDep, WriteSession
from api.openapi import body_of, problems
from api.schemas.credentials import CredentialCreate, CredentialList, CredentialRead
from registry import credentials
from registry.tables import Credential

router = APIRouter(prefix="/v1/credentials", tags=["administration"])
_REFUSALS = problems(401, 403, 404, 422)


@router.post(
    "",
    status_code=201,
    response_model=CredentialRead,
    summary="Store a credential",
    openapi_extra=body_of("CredentialCreate"),
    responses=problems(400, 401, 403, 413, 415, 422),
)
def create_credential(
    who: Admin,
    body: Annotated[Body[CredentialCreate], Depends(json_body(CredentialCreate))],
    session: WriteSession,
    settings: SettingsDep,
) -> Response:
    """Keep a secret for the `credential` of a model or of data; it is never shown again."""
    wanted = body.value
    row = credentials.create(
        session,
        tenant_id=who.tenant_id,
        name=wanted.name,
        kind=wanted.kind,
        secret=wanted.secret,
        master=settings.installation_secret,
    )
    headers = {"Location": f"/v1/credentials/{row.id}", "Cache-Control": "no-store"}
    return JSONResponse(_read(row).model_dump(mode="json"), 201, headers)


@router.get("", summary="List credentials", responses=problems(401, 403, 422))
def list_credentials(who: Admin, session: ReadSession) -> CredentialList:
    """Every credential of your tenant, without the secrets."""
    rows = credentials.list_all(session, who.tenant_id)
    return CredentialList(data=[_read(row) for row in rows])


@router.get("/{credential_id}", summary="Read a credential", responses=_REFUSALS)
def get_credential(credential_id: str, who: Admin, session: ReadSession) -> CredentialRead:
    """One credential, without its secret."""
    return _read(credentials.get(session, who.tenant_id, credential_id))


@router.delete(
    "/{credential_id}", status_code=204, summary="Forget a credential", responses=_REFUSALS
)
def delete_credential(credential_id: str, who: Admin, session: WriteSession) -> None:
    """Remove the secret; attempts that begin from now on cannot use it."""
    credentials.delete(session, credentials.get(session, who.tenant_id, credential_id))


def _read(row: Credential) -> CredentialRead:
    return CredentialRead.model_validate(
        {"id": row.id, "name": row.name, "kind": row.kind, "created_at": row.created_at}
    )
