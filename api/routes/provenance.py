"""Finding things, and where they come from."""

from typing import Annotated

from fastapi import APIRouter, Query

from api.deps import CheckpointReader, JobsReader, ReadSession, StoreDep
from api.openapi import problems
from api.schemas.provenance import HitRead, OriginRead, SearchRead
from pruning.manifest import MANIFEST_NAME, Manifest
from registry import checkpoints, placement, search
from registry.search import Hit
from registry.storage import ArtifactStore
from registry.tables import Job

router = APIRouter(prefix="/v1", tags=["provenance"])


@router.get("/search", summary="Search", responses=problems(401, 403, 422))
def search_all(
    who: JobsReader,
    session: ReadSession,
    q: Annotated[
        str, Query(min_length=2, max_length=200, description="Part of what it is called.")
    ],
    limit: Annotated[int, Query(ge=1, le=50, description="Of each kind.")] = 20,
) -> SearchRead:
    """Jobs, checkpoints and models by a part of their id, name, base model or description."""
    found = search.search(session, who.tenant_id, q, limit=limit)
    return SearchRead(data=[_read_hit(hit) for hit in found])


def _read_hit(hit: Hit) -> HitRead:
    url = f"/v1/models/{hit.name}" if hit.kind == "model" else f"/v1/{hit.kind}s/{hit.id}"
    return HitRead(
        kind=hit.kind,
        id=hit.id,
        name=hit.name,
        detail=hit.detail,
        url=url,
        created_at=hit.created_at,
    )


@router.get(
    "/checkpoints/{checkpoint_id}/origin",
    summary="Where a checkpoint comes from",
    responses=problems(401, 403, 404, 422),
)
def get_origin(
    checkpoint_id: str, who: CheckpointReader, session: ReadSession, store: StoreDep
) -> OriginRead:
    """Its base model, text, code, cost, and which groups of the base model it kept."""
    row = checkpoints.get(session, who.tenant_id, checkpoint_id)
    sha256 = checkpoints.get_file(session, row.id, MANIFEST_NAME).sha256
    manifest = _read_manifest(store, sha256)
    placed = placement.place(session, session.get_one(Job, row.job_id))
    return OriginRead(
        checkpoint=row.id,
        job=row.job_id,
        parent=row.parent_id,
        base_model=manifest.lineage.model,
        base_revision=manifest.lineage.model_revision,
        data_fingerprint=manifest.data_fingerprint,
        versions=manifest.versions,
        tokens=manifest.num_tokens,
        device=placed.device,
        device_seconds=placed.device_seconds,
        energy_joules=placed.energy_joules,
        plan=manifest.plan.model_dump(mode="json"),
    )


def _read_manifest(store: ArtifactStore, sha256: str) -> Manifest:
    return Manifest.model_validate_json(b"".join(store.open_range(sha256)))
