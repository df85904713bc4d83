"""`data: ckpt_…`: the text that a checkpoint was made with, so that pruning goes on with it."""

from typing import TypeVar

from api.bodies import Body
from api.deps import Principal
from api.errors import Problem
from api.schemas.data import DataPreviewRequest
from api.schemas.jobs import JobCreate
from pruning.recipe import Recipe
from pruning.recipe_parts.data import CheckpointData, Data
from registry import checkpoints
from registry.db import SessionFactory
from registry.errors import NotFound
from registry.tables import Job
from registry.tenancy import reading_of

Asked = TypeVar("Asked", JobCreate, DataPreviewRequest)


def with_own_text(sessions: SessionFactory, who: Principal, body: Body[Asked]) -> Body[Asked]:
    """The same request with the data of the checkpoint's job in place of the checkpoint.

    Held-out documents stay held out: all of `data` is that job's.

    Raises:
        Problem: 422, the tenant has no such checkpoint.
    """
    source = body.value.data.train[0].source
    if not isinstance(source, CheckpointData):
        return body
    data = _data_of(sessions, who, source.id)
    value = type(body.value).model_validate({**body.value.model_dump(), "data": data.model_dump()})
    return Body(written=body.written, value=value)


def _data_of(sessions: SessionFactory, who: Principal, checkpoint_id: str) -> Data:
    with reading_of(sessions, who.tenant_id) as session:
        try:
            row = checkpoints.get(session, who.tenant_id, checkpoint_id)
        except NotFound as error:
            raise Problem("validation_error", error.message, param="data.train") from error
        return Recipe.model_validate(session.get_one(Job, row.job_id).recipe).data
