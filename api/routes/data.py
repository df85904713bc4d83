"""Text: a look at what a job would read, before there is one."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends, Request
from sqlalchemy.orm import Session

from api.bodies import Body, json_body
from api.deps import JobsReader, Principal, SettingsDep, StoreDep
from api.openapi import body_of, problems
from api.own_text import with_own_text
from api.paths import refuse_forbidden
from api.previews import find_tokenizer, uploads_as_paths
from api.schemas.data import DataPreviewRead, DataPreviewRequest, DomainPreviewRead
from pruning.recipe_parts.data import Data, HubData, PathData, UploadData
from pruning.recipe_parts.model import PathModel
from registry import credentials, files
from registry.settings import Settings
from registry.tenancy import reading_of

if TYPE_CHECKING:
    from pruning.preview import DomainPreview, Preview

router = APIRouter(prefix="/v1/data", tags=["data"])


@router.post(
    "/preview",
    summary="Look at text",
    openapi_extra=body_of("DataPreviewRequest"),
    responses=problems(400, 401, 403, 413, 415, 422),
)
def preview_data(
    request: Request,
    who: JobsReader,
    body: Annotated[Body[DataPreviewRequest], Depends(json_body(DataPreviewRequest))],
    settings: SettingsDep,
    store: StoreDep,
) -> DataPreviewRead:
    """Documents, tokens and a few rows of each domain, and what is odd about them.

    Only the beginning of a domain is looked at. Nothing is stored. What only a worker can reach is
    said so among the warnings.
    """
    # Only here: few requests look at text, and numpy and the tokenizers take 20 MB.
    from pruning.preview import preview

    wanted = with_own_text(request.app.state.sessions, who, body).value
    refuse_forbidden(_paths(wanted), settings)
    named = {
        domain.source.file: f"data.train.{index}.source.file"
        for index, domain in enumerate(wanted.data.train)
        if isinstance(domain.source, UploadData)
    }
    with reading_of(request.app.state.sessions, who.tenant_id) as session:
        rows = {row.id: row for row in files.usable_ones(session, who.tenant_id, named)}
        token = _hub_token(session, who, wanted.data, settings)
    hub_seconds = request.app.state.api_settings.hub_seconds
    tokenizer = find_tokenizer(wanted.model, settings, hub_seconds=hub_seconds)
    with uploads_as_paths(wanted.data, rows, store) as data:
        found = preview(data, tokenizer, reads_hub=hub_seconds > 0, hub_token=token)
        return _read(found)


def _hub_token(session: Session, who: Principal, data: Data, settings: Settings) -> str | None:
    """The secret of the credential that the text names, if it names one."""
    for index, domain in enumerate(data.train):
        if isinstance(domain.source, HubData) and domain.source.credential is not None:
            param = f"data.train.{index}.source.credential"
            master = settings.installation_secret
            return credentials.reveal(
                session, who.tenant_id, param, domain.source.credential, master
            )
    return None


def _paths(wanted: DataPreviewRequest) -> Iterator[tuple[str, str]]:
    if isinstance(wanted.model, PathModel):
        yield "model.path", wanted.model.path
    yield from _data_paths(wanted.data)


def _data_paths(data: Data) -> Iterator[tuple[str, str]]:
    for index, domain in enumerate(data.train):
        if isinstance(domain.source, PathData):
            yield f"data.train.{index}.source.path", domain.source.path


def _read(found: "Preview") -> DataPreviewRead:
    domains = [_read_domain(domain) for domain in found.domains]
    return DataPreviewRead(
        domains=domains,
        documents=sum(domain.documents for domain in domains),
        tokens=sum(domain.tokens for domain in domains),
        tokens_counted=found.tokens_counted,
        warnings=list(found.warnings),
    )


def _read_domain(domain: "DomainPreview") -> DomainPreviewRead:
    return DomainPreviewRead(
        name=domain.name,
        documents=domain.num_documents,
        bytes=domain.num_bytes,
        tokens=domain.num_tokens,
        held_out=domain.num_held_out,
        malformed=domain.num_malformed,
        copies=domain.num_copies,
        rows=list(domain.rows),
        complete=domain.complete,
        weight=domain.weight,
        license=domain.license,
    )
