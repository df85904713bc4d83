"""Estimates: the numbers of a job before there is one."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from api.bodies import Body, json_body
from api.deps import JobsReader, ModelConfigsDep, SettingsDep
from api.errors import Problem
from api.estimates import file_sizes, foretell, model_token
from api.forecasts import estimate_with_history
from api.openapi import body_of, problems
from api.own_text import with_own_text
from api.paths import refuse_forbidden_paths
from api.schemas.estimates import EstimateRead
from api.schemas.jobs import JobCreate
from registry.tenancy import reading_of

router = APIRouter(prefix="/v1/estimates", tags=["jobs"])


@router.post(
    "",
    summary="Estimate a job",
    openapi_extra=body_of("JobCreate"),
    responses=problems(400, 401, 403, 413, 415, 422),
)
def create_estimate(
    request: Request,
    who: JobsReader,
    body: Annotated[Body[JobCreate], Depends(json_body(JobCreate))],
    settings: SettingsDep,
    configs: ModelConfigsDep,
) -> EstimateRead:
    """Sizes, memory, storage and time of the same request sent to `POST /v1/jobs`, and the floor.

    Nothing is stored. A target that cannot be reached is refused, naming the limit.
    """
    sessions = request.app.state.sessions
    body = with_own_text(sessions, who, body)
    refuse_forbidden_paths(body.value, settings)
    recipe = body.value.recipe
    token = model_token(sessions, who, recipe, settings)
    foretold = foretell(recipe, configs, file_sizes(sessions, who, recipe), token=token)
    if foretold is None:
        raise Problem(
            "model_unavailable",
            "The model's config.json cannot be read from here; a worker may still have it.",
            param="model",
        )
    with reading_of(sessions, who.tenant_id) as session:
        return estimate_with_history(session, who.tenant_id, recipe, foretold)
