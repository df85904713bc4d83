"""Parameters that a route reads by itself.

FastAPI reads four of them in a sixth of the time that reading a job takes. A route that is asked as
often as that one has models that say what there may be, and looks at them when something was sent.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)


def described(
    *,
    path: Sequence[str] = (),
    query: type[BaseModel] | None = None,
    headers: type[BaseModel] | None = None,
) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads these by itself; path parameters are texts."""
    found: list[dict[str, Any]] = [
        {
            "in": "path",
            "name": name,
            "required": True,
            "schema": {"title": name.replace("_", " ").title(), "type": "string"},
        }
        for name in path
    ]
    for place, model in (("query", query), ("header", headers)):
        if model is not None:
            found += _described(place, model)
    return {"parameters": found}


def read_by_route(described: Mapping[str, Any] | None) -> dict[str, bool]:
    """The names of the query parameters that a route reads by itself; none may be repeated."""
    parameters = (described or {}).get("parameters", ())
    # One that is spread over many names has its own rule (`api.queries.metadata_filter`).
    return {one["name"]: False for one in parameters if one["in"] == "query" and "style" not in one}


def _described(place: str, model: type[BaseModel]) -> Iterator[dict[str, Any]]:
    for name, schema in model.model_json_schema()["properties"].items():
        if schema.get("default", ...) is None:
            del schema["default"]
        yield {
            "in": place,
            "name": name,
            "required": False,
            "description": schema["description"],
            "schema": schema,
        }


def read_query(request: Request, model: type[Model]) -> Model:
    """What the query says, each once at most (`api.queries` has looked).

    Raises:
        RequestValidationError: it says what the model does not allow.
    """
    if not request.scope["query_string"]:
        return model()
    return _validated("query", model, request.query_params)


def read_headers(request: Request, model: type[Model]) -> Model:
    """What the headers that the model names say.

    Raises:
        RequestValidationError: one says what the model does not allow.
    """
    said = {
        name: value
        for field in model.model_fields.values()
        if (name := str(field.alias)) and (value := request.headers.get(name)) is not None
    }
    return _validated("header", model, said) if said else model()


def _validated(place: str, model: type[Model], said: Mapping[str, str]) -> Model:
    try:
        return model.model_validate(dict(said))
    except ValidationError as error:
        found = [{**one, "loc": (place, *one["loc"])} for one in error.errors(include_url=False)]
        raise RequestValidationError(found) from error
