"""Query parameters: what is not offered is refused, or a misspelt filter would list everything."""

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

from fastapi import Depends, Query, Request
from fastapi.dependencies.models import Dependant
from pydantic import BaseModel, ConfigDict, Field

from api.errors import Problem
from api.parameters import read_by_route
from api.schemas.base import UtcTime
from registry.status import JobStatus

MAX_POINTS = 10_000


async def only_known_query(request: Request) -> None:
    """The same as a dependency, for routes that ask for no key."""
    refuse_unknown_query(request)


def refuse_unknown_query(request: Request) -> None:
    """Refuse unknown query parameters, one said twice, and text no database can hold.

    Raises:
        Problem: 422 naming the parameter, or 404 for a path no row can have.
    """
    if any("\0" in str(value) for value in request.path_params.values()):
        raise Problem("not_found", "There is nothing here.")
    if not request.scope["query_string"]:
        return
    route = request.scope["route"]
    known = {**read_by_route(route.openapi_extra), **dict(_query_parameters(route.dependant))}
    labels = any(part.call is metadata_filter for part in route.dependant.dependencies)
    errors = [
        {"param": name, "code": "extra_forbidden", "message": "there is no such parameter"}
        for name in request.query_params
        if name not in known and not (labels and _LABEL.fullmatch(name))
    ]
    if errors:
        names = ", ".join(sorted(known)) or "none"
        detail = f"{errors[0]['param']}: there is no such parameter; there are: {names}"
        raise Problem("validation_error", detail, param=errors[0]["param"], errors=errors)
    seen: set[str] = set()
    for name, value in request.query_params.multi_items():
        if "\0" in name or "\0" in value:
            raise Problem("validation_error", f"{name}: may not contain U+0000", param=name)
        if name in seen and not known.get(name):
            raise Problem("validation_error", f"{name}: may be given only once", param=name)
        seen.add(name)


def _query_parameters(dependant: Dependant) -> Iterator[tuple[str, bool]]:
    """Their names, and whether each may be repeated."""
    for field in dependant.query_params:
        annotation = field.field_info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            for name, one in annotation.model_fields.items():
                yield name, _is_list(one.annotation)
        else:
            yield field.alias, _is_list(annotation)
    for part in dependant.dependencies:
        yield from _query_parameters(part)


def _is_list(annotation: Any) -> bool:
    origin = get_origin(annotation)
    found = isinstance(origin, type) and issubclass(origin, Sequence)
    return found or any(map(_is_list, get_args(annotation)))


_NO_NUL = r"^[^\x00]*$"


class JobQuery(BaseModel):
    """How a list of jobs is narrowed and paged."""

    model_config = ConfigDict(extra="ignore")

    limit: int = Field(20, ge=1, le=100, description="Jobs per page.")
    after: str | None = Field(
        None, pattern=r"^job_[0-9a-f]{32}$", description="Id of the last job of the page before."
    )
    order: Literal["asc", "desc"] = Field("desc", description="By time of creation.")
    status: list[JobStatus] = Field([], description="Only these statuses; may be repeated.")
    model: str | None = Field(None, pattern=_NO_NUL, description="Only jobs of this model.")
    q: str | None = Field(
        None, min_length=1, max_length=200, description="Only jobs whose name contains this."
    )
    created_after: UtcTime | None = Field(None, description="Only jobs created after this.")
    created_before: UtcTime | None = Field(None, description="Only jobs created before this.")


JobQueryDep = Annotated[JobQuery, Query()]


class JobWait(BaseModel):
    """How long to wait for a change of a job."""

    wait: float = Field(
        0, ge=0, le=60, description="Seconds to wait for a version above `if_version`."
    )
    if_version: int | None = Field(None, ge=0, description="The version you have.")


class JobCreation(BaseModel):
    """How a job is created."""

    dry_run: bool = Field(False, description="Validate and resolve, but store nothing.")


class Conditions(BaseModel):
    """What an answer depends on."""

    if_none_match: str | None = Field(
        None, alias="if-none-match", title="If-None-Match", description="An ETag you have."
    )


_LABEL = re.compile(r"metadata\[([^\[\]]{1,64})\]")
METADATA_PARAMETER = {
    "parameters": [
        {
            "name": "metadata",
            "in": "query",
            "style": "deepObject",
            "explode": True,
            "description": "Only jobs with these labels: `metadata[team]=nlp`.",
            "schema": {
                "type": "object",
                "propertyNames": {
                    "minLength": 1,
                    "maxLength": 64,
                    "pattern": r"^[^\[\]\u0000]*$",
                },
                "additionalProperties": {"type": "string", "pattern": r"^[^\u0000]*$"},
            },
        }
    ]
}


async def metadata_filter(request: Request) -> dict[str, str]:
    """The labels asked for as `metadata[key]=value`."""
    found = ((_LABEL.fullmatch(name), value) for name, value in request.query_params.multi_items())
    return {match[1]: value for match, value in found if match is not None}


MetadataFilter = Annotated[dict[str, str], Depends(metadata_filter)]
