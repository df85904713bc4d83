"""Registered models: versions, aliases, and where each version comes from."""

from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.dashboard.viewing import ModelsActor, ModelsViewer, go, read_fields, show
from api.deps import ReadSession, WriteSession
from api.schemas.models import AliasPut, ModelCreate, VersionCreate
from registry import models
from registry.tables import Checkpoint, Job, ModelVersion, RegisteredModel

router = APIRouter(prefix="/models")

MODELS_PER_PAGE = 100
Text = Annotated[str, Form(max_length=2000)]
Name = Annotated[str, Form(max_length=100)]


@router.get("")
def models_page(
    request: Request,
    who: ModelsViewer,
    session: ReadSession,
    after: str | None = None,
    checkpoint: Annotated[str | None, Query(max_length=64)] = None,
) -> Response:
    """All models by name; with `checkpoint`, where to register that."""
    rows, has_more = models.list_page(session, who.tenant_id, limit=MODELS_PER_PAGE, after=after)
    listed = [{"row": row, "aliases": models.list_aliases(session, row)} for row in rows]
    context = {"models": listed, "has_more": has_more, "checkpoint": checkpoint or ""}
    return show(request, "models.html", context)


@router.post("")
def register(
    who: ModelsActor,
    session: WriteSession,
    name: Name = "",
    description: Text = "",
    checkpoint: Annotated[str, Form(max_length=64)] = "",
) -> Response:
    """A model that is new, or known by that name; with `checkpoint`, its next version."""
    wanted = read_fields(ModelCreate, {"name": name, "description": description or None})
    known = _is_known(session, who.tenant_id, name)
    if not known:
        models.create(
            session, tenant_id=who.tenant_id, name=wanted.name, description=wanted.description
        )
    if checkpoint:
        version = read_fields(VersionCreate, {"checkpoint": checkpoint.strip()})
        model = models.get(session, who.tenant_id, name, for_update=True)
        models.add_version(session, model, version.checkpoint, description=description or None)
    return go(f"/models/{name}")


def _is_known(session: Session, tenant_id: str, name: str) -> bool:
    query = select(RegisteredModel.id).where(
        RegisteredModel.tenant_id == tenant_id, RegisteredModel.name == name
    )
    return session.scalars(query).one_or_none() is not None


@router.get("/{name}")
def model_page(request: Request, name: str, who: ModelsViewer, session: ReadSession) -> Response:
    """One model."""
    model = models.get(session, who.tenant_id, name)
    versions = [_version(session, row) for row in models.list_versions(session, model)]
    context = {
        "model": model,
        "versions": versions,
        "aliases": models.list_aliases(session, model),
    }
    return show(request, "model.html", context)


def _version(session: Session, row: ModelVersion) -> dict[str, Any]:
    checkpoint = session.get_one(Checkpoint, row.checkpoint_id)
    return {
        "row": row,
        "checkpoint": checkpoint,
        "job": session.get_one(Job, checkpoint.job_id),
        "lineage": models.lineage(session, row),
    }


@router.post("/{name}/versions")
def add_version(
    name: str,
    who: ModelsActor,
    session: WriteSession,
    checkpoint: Annotated[str, Form(max_length=64)] = "",
    description: Text = "",
) -> Response:
    """The next version of a model."""
    wanted = read_fields(VersionCreate, {"checkpoint": checkpoint.strip()})
    model = models.get(session, who.tenant_id, name, for_update=True)
    models.add_version(session, model, wanted.checkpoint, description=description or None)
    return go(f"/models/{name}")


@router.post("/{name}/aliases")
def move_alias(
    name: str,
    who: ModelsActor,
    session: WriteSession,
    alias: Annotated[str, Form(max_length=64, pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,63}$")],
    version: Annotated[int, Form(ge=1, le=2**31)],
    revision: Annotated[int | None, Form()] = None,
) -> Response:
    """Let an alias name a version, if it stands where the page said."""
    model = models.get(session, who.tenant_id, name, for_update=True)
    wanted = read_fields(AliasPut, {"version": version})
    models.move_alias(session, model, alias, wanted.version, revision=revision)
    return go(f"/models/{name}")


@router.post("/{name}/aliases/{alias}/remove")
def remove_alias(
    name: str,
    alias: str,
    who: ModelsActor,
    session: WriteSession,
    revision: Annotated[int | None, Form()] = None,
) -> Response:
    """Forget an alias, if it stands where the page said."""
    model = models.get(session, who.tenant_id, name, for_update=True)
    models.remove_alias(session, model, alias, revision=revision)
    return go(f"/models/{name}")
