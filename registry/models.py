"""Registered models: names, numbered versions, and aliases that move by compare-and-swap."""

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from registry import checkpoints, retention
from registry.db import database_now, insert_unless_exists
from registry.errors import AliasMoved, AlreadyExists, NotFound
from registry.ids import new_id
from registry.tables import Checkpoint, Job, ModelAlias, ModelVersion, RegisteredModel


def create(
    session: Session, *, tenant_id: str, name: str, description: str | None
) -> RegisteredModel:
    """A model without a version.

    Raises:
        AlreadyExists: the tenant has one of that name.
    """
    values = {
        "id": new_id("mdl"),
        "tenant_id": tenant_id,
        "name": name,
        "description": description,
        "last_version": 0,
        "created_at": database_now(session),
    }
    if not insert_unless_exists(session, RegisteredModel, values):
        raise AlreadyExists(f"there is a model {name!r}")
    return get(session, tenant_id, name)


def get(
    session: Session, tenant_id: str, name: str, *, for_update: bool = False
) -> RegisteredModel:
    """The tenant's model of that name.

    Raises:
        NotFound: there is none.
    """
    query = select(RegisteredModel).where(
        RegisteredModel.tenant_id == tenant_id, RegisteredModel.name == name
    )
    if for_update:
        query = query.with_for_update().execution_options(populate_existing=True)
    row = session.scalars(query).one_or_none()
    if row is None:
        raise NotFound("model", name)
    return row


def list_page(
    session: Session, tenant_id: str, *, limit: int, after: str | None
) -> tuple[list[RegisteredModel], bool]:
    """Models by name, behind the name `after`; and whether more follow."""
    query = select(RegisteredModel).where(RegisteredModel.tenant_id == tenant_id)
    if after is not None:
        query = query.where(RegisteredModel.name > after)
    rows = list(session.scalars(query.order_by(RegisteredModel.name).limit(limit + 1)))
    return rows[:limit], len(rows) > limit


def remove(session: Session, model: RegisteredModel) -> None:
    """Forget a model, its versions and aliases; checkpoints stay as their jobs keep them."""
    versions = list_versions(session, model)
    session.execute(delete(ModelAlias).where(ModelAlias.model_id == model.id))
    session.execute(delete(ModelVersion).where(ModelVersion.model_id == model.id))
    for version in versions:
        _unpin(session, version.checkpoint_id)
    session.delete(model)
    session.flush()


def _unpin(session: Session, checkpoint_id: str) -> None:
    query = select(ModelVersion.version).where(ModelVersion.checkpoint_id == checkpoint_id)
    if session.scalars(query.limit(1)).one_or_none() is not None:
        return
    checkpoint = session.get_one(Checkpoint, checkpoint_id)
    checkpoint.pinned = False
    session.flush()
    retention.apply(session, session.get_one(Job, checkpoint.job_id))


# --- versions -------------------------------------------------------------------------------------


def add_version(
    session: Session, model: RegisteredModel, checkpoint_id: str, *, description: str | None
) -> ModelVersion:
    """The next version of a model got `for_update`; its checkpoint is kept from now on.

    Raises:
        NotFound: the tenant has no such checkpoint, or it was deleted.
    """
    checkpoint = checkpoints.get(session, model.tenant_id, checkpoint_id)
    if checkpoint.status == "deleted":
        raise NotFound("checkpoint", checkpoint_id)
    checkpoint.pinned = True
    model.last_version += 1
    row = ModelVersion(
        model_id=model.id,
        version=model.last_version,
        checkpoint_id=checkpoint.id,
        description=description,
        created_at=database_now(session),
    )
    session.add(row)
    session.flush()
    return row


def list_versions(session: Session, model: RegisteredModel) -> list[ModelVersion]:
    """The versions of a model, newest first."""
    query = select(ModelVersion).where(ModelVersion.model_id == model.id)
    return list(session.scalars(query.order_by(ModelVersion.version.desc())))


def get_version(session: Session, model: RegisteredModel, version: int) -> ModelVersion:
    """One version.

    Raises:
        NotFound: there is none of that number.
    """
    row = session.get(ModelVersion, (model.id, version))
    if row is None:
        raise NotFound("version", str(version))
    return row


def lineage(session: Session, version: ModelVersion) -> list[Checkpoint]:
    """The checkpoints that a version came from, its own last, the first of its job first."""
    chain: list[Checkpoint] = []
    checkpoint_id: str | None = version.checkpoint_id
    while checkpoint_id is not None:
        checkpoint = session.get_one(Checkpoint, checkpoint_id)
        chain.append(checkpoint)
        checkpoint_id = checkpoint.parent_id
    return chain[::-1]


# --- aliases --------------------------------------------------------------------------------------


def list_aliases(session: Session, model: RegisteredModel) -> list[ModelAlias]:
    """The aliases of a model by name."""
    query = select(ModelAlias).where(ModelAlias.model_id == model.id)
    return list(session.scalars(query.order_by(ModelAlias.alias)))


def find_alias(session: Session, model: RegisteredModel, alias: str) -> ModelAlias | None:
    """One alias, or None."""
    return session.get(ModelAlias, (model.id, alias))


def move_alias(
    session: Session, model: RegisteredModel, alias: str, version: int, *, revision: int | None
) -> ModelAlias:
    """Let an alias name another version, if it still stands at `revision` (None: is new).

    The model was got `for_update`, so that of two who move it one comes second.

    Raises:
        NotFound: there is no such version.
        AliasMoved: it stands elsewhere.
    """
    get_version(session, model, version)
    row = find_alias(session, model, alias)
    _check_revision(row, alias, revision)
    if row is None:
        row = ModelAlias(model_id=model.id, alias=alias, revision=0)
        session.add(row)
    row.version, row.revision = version, row.revision + 1
    row.updated_at = database_now(session)
    session.flush()
    return row


def remove_alias(
    session: Session, model: RegisteredModel, alias: str, *, revision: int | None
) -> None:
    """Forget an alias, if it still stands at `revision` (None: wherever it stands).

    Raises:
        NotFound: there is none.
        AliasMoved: it stands elsewhere.
    """
    row = find_alias(session, model, alias)
    if row is None:
        raise NotFound("alias", alias)
    if revision is not None:
        _check_revision(row, alias, revision)
    session.delete(row)
    session.flush()


def _check_revision(row: ModelAlias | None, alias: str, revision: int | None) -> None:
    stands = row.revision if row is not None else None
    if stands != revision:
        raise AliasMoved(f"alias {alias!r} stands at revision {stands}", revision=stands)
