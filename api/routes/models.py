"""Registered models: versions are checkpoints for good, aliases move by compare-and-swap."""

import re
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Response
from fastapi.responses import JSONResponse

from api.answer_once import IdempotencyKey, answer_once
from api.bodies import Body, json_body
from api.deps import ModelsReader, ModelsWriter, ReadSession, WriteSession
from api.errors import Problem
from api.openapi import body_of, problems
from api.representations import read_alias, read_registered_model, read_version
from api.schemas.models import (
    ALIAS_NAME,
    MODEL_NAME,
    AliasPut,
    AliasRead,
    LineageRead,
    LineageStep,
    ModelCreate,
    ModelPage,
    QualityGate,
    RegisteredModelRead,
    VersionCreate,
    VersionList,
    VersionRead,
)
from registry import models
from registry.errors import NotFound
from registry.promotion import Gate, check_gate
from registry.tables import Job, ModelAlias, RegisteredModel

router = APIRouter(prefix="/v1/models", tags=["models"])

_REFUSALS = problems(401, 403, 404, 422)
_CREATING = problems(400, 401, 403, 404, 409, 413, 415, 422)
_TAG = re.compile(r'"r(\d{1,18})"')
ModelName = Annotated[str, Path(max_length=100)]
AliasName = Annotated[str, Path(pattern=ALIAS_NAME)]
Version = Annotated[int, Path(ge=1, le=2**31)]
IfMatch = Annotated[str | None, Header(description="The ETag of the alias as you know it.")]


@router.post(
    "",
    status_code=201,
    response_model=RegisteredModelRead,
    summary="Register a model",
    openapi_extra=body_of("ModelCreate"),
    responses=_CREATING,
)
def create_model(
    who: ModelsWriter,
    body: Annotated[Body[ModelCreate], Depends(json_body(ModelCreate))],
    session: WriteSession,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """A name under which versions are kept."""

    def create() -> dict[str, Any]:
        row = models.create(
            session,
            tenant_id=who.tenant_id,
            name=body.value.name,
            description=body.value.description,
        )
        return read_registered_model(session, row).model_dump(mode="json")

    answer = answer_once(
        session,
        tenant_id=who.tenant_id,
        key=idempotency_key,
        path="/v1/models",
        written=body.written,
        create=create,
    )
    location = f"/v1/models/{answer.body['name']}"
    return JSONResponse(answer.body, 201, {"Location": location, **answer.headers})


@router.get("", summary="List models", responses=problems(401, 403, 422))
def list_models(
    who: ModelsReader,
    session: ReadSession,
    limit: Annotated[int, Query(ge=1, le=100, description="Models per page.")] = 20,
    after: Annotated[
        str | None, Query(pattern=MODEL_NAME, description="Name of the last model before.")
    ] = None,
) -> ModelPage:
    """The models of your tenant, by name."""
    rows, has_more = models.list_page(session, who.tenant_id, limit=limit, after=after)
    return ModelPage(
        data=[read_registered_model(session, row) for row in rows],
        has_more=has_more,
        last_name=rows[-1].name if rows else None,
    )


@router.get("/{name}", summary="Read a model", responses=_REFUSALS)
def get_model(name: ModelName, who: ModelsReader, session: ReadSession) -> RegisteredModelRead:
    """A model and its aliases."""
    return read_registered_model(session, models.get(session, who.tenant_id, name))


@router.delete("/{name}", status_code=204, summary="Remove a model", responses=_REFUSALS)
def delete_model(name: ModelName, who: ModelsWriter, session: WriteSession) -> None:
    """Forget a model with its versions and aliases; checkpoints stay as their jobs keep them."""
    models.remove(session, models.get(session, who.tenant_id, name, for_update=True))


@router.post(
    "/{name}/versions",
    status_code=201,
    response_model=VersionRead,
    summary="Add a version",
    openapi_extra=body_of("VersionCreate"),
    responses=_CREATING,
)
def create_version(
    name: ModelName,
    who: ModelsWriter,
    body: Annotated[Body[VersionCreate], Depends(json_body(VersionCreate))],
    session: WriteSession,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Give a checkpoint the next number; it is kept whatever the retention of its job says."""

    def create() -> dict[str, Any]:
        model = models.get(session, who.tenant_id, name, for_update=True)
        row = models.add_version(
            session, model, body.value.checkpoint, description=body.value.description
        )
        return read_version(model, row).model_dump(mode="json")

    path = f"/v1/models/{name}/versions"
    answer = answer_once(
        session,
        tenant_id=who.tenant_id,
        key=idempotency_key,
        path=path,
        written=body.written,
        create=create,
    )
    location = f"{path}/{answer.body['version']}"
    return JSONResponse(answer.body, 201, {"Location": location, **answer.headers})


@router.get("/{name}/versions", summary="List versions", responses=_REFUSALS)
def list_versions(name: ModelName, who: ModelsReader, session: ReadSession) -> VersionList:
    """The versions of a model, newest first."""
    model = models.get(session, who.tenant_id, name)
    rows = models.list_versions(session, model)
    return VersionList(data=[read_version(model, row) for row in rows])


@router.get("/{name}/versions/{version}", summary="Read a version", responses=_REFUSALS)
def get_version(
    name: ModelName, version: Version, who: ModelsReader, session: ReadSession
) -> VersionRead:
    """One version."""
    model = models.get(session, who.tenant_id, name)
    return read_version(model, models.get_version(session, model, version))


@router.get("/{name}/versions/{version}/lineage", summary="Lineage", responses=_REFUSALS)
def get_lineage(
    name: ModelName, version: Version, who: ModelsReader, session: ReadSession
) -> LineageRead:
    """From the base model over every increment to this version."""
    model = models.get(session, who.tenant_id, name)
    chain = models.lineage(session, models.get_version(session, model, version))
    job = session.get_one(Job, chain[0].job_id)
    resolved = job.resolved or {}
    return LineageRead(
        base_model=job.model,
        base_revision=resolved.get("model_revision"),
        data_fingerprint=resolved.get("data_fingerprint"),
        steps=[
            LineageStep(
                checkpoint=one.id,
                job=one.job_id,
                increment=one.increment,
                params=one.params,
                sha256=one.manifest_sha256,
            )
            for one in chain
        ],
    )


_ALIAS = "/{name}/aliases/{alias}"


@router.get(_ALIAS, response_model=AliasRead, summary="Read an alias", responses=_REFUSALS)
def get_alias(
    name: ModelName, alias: AliasName, who: ModelsReader, session: ReadSession
) -> Response:
    """Which version an alias names; its ETag is what moving it needs."""
    model = models.get(session, who.tenant_id, name)
    row = models.find_alias(session, model, alias)
    if row is None:
        raise NotFound("alias", alias)
    return _alias_response(model, row)


@router.put(
    _ALIAS,
    response_model=AliasRead,
    summary="Set an alias",
    openapi_extra=body_of("AliasPut"),
    responses=problems(400, 401, 403, 404, 409, 412, 413, 415, 422, 428),
)
def put_alias(
    name: ModelName,
    alias: AliasName,
    who: ModelsWriter,
    body: Annotated[Body[AliasPut], Depends(json_body(AliasPut))],
    session: WriteSession,
    if_match: IfMatch = None,
) -> Response:
    """Let an alias name a version. One that exists moves only for who knows where it stands."""
    model = models.get(session, who.tenant_id, name, for_update=True)
    if if_match is None and models.find_alias(session, model, alias) is not None:
        detail = "The alias exists: send If-Match with its ETag."
        raise Problem("precondition_required", detail, param="If-Match")
    if body.value.gate is not None:
        check_gate(session, model, alias, body.value.version, _gate(body.value.gate))
    row = models.move_alias(session, model, alias, body.value.version, revision=_revision(if_match))
    return _alias_response(model, row)


def _gate(gate: QualityGate) -> Gate:
    return Gate(
        suite=gate.suite,
        metric=gate.metric,
        lower_is_better=gate.better == "lower",
        at_least=gate.at_least,
        at_most=gate.at_most,
        max_loss=gate.max_loss,
    )


@router.delete(
    _ALIAS,
    status_code=204,
    summary="Remove an alias",
    responses=problems(401, 403, 404, 412, 422),
)
def delete_alias(
    name: ModelName,
    alias: AliasName,
    who: ModelsWriter,
    session: WriteSession,
    if_match: IfMatch = None,
) -> None:
    """Forget an alias; with If-Match only if it still stands where you believe it."""
    model = models.get(session, who.tenant_id, name, for_update=True)
    models.remove_alias(session, model, alias, revision=_revision(if_match))


def _revision(if_match: str | None) -> int | None:
    if if_match is None:
        return None
    match = _TAG.fullmatch(if_match.strip())
    return int(match[1]) if match else -1


def _alias_response(model: RegisteredModel, row: ModelAlias) -> Response:
    body = read_alias(model, row).model_dump(mode="json")
    return JSONResponse(body, headers={"ETag": f'"r{row.revision}"'})
