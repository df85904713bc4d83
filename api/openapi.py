"""What FastAPI cannot derive of the OpenAPI document, and what is read back from it."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.routing import compile_path


def allowed_methods(app: FastAPI, path: str) -> list[str]:
    """The methods offered at a path over all routes; the router knows only those of one route."""
    methods: set[str] = set()
    for pattern, operations in _patterns(app):
        if pattern.match(path):
            methods |= operations
    return sorted(methods)


@lru_cache(maxsize=4)
def _patterns(app: FastAPI) -> tuple[tuple[re.Pattern[str], frozenset[str]], ...]:
    paths: Mapping[str, Any] = app.openapi()["paths"]
    return tuple(
        (compile_path(path)[0], frozenset(method.upper() for method in operations))
        for path, operations in paths.items()
    )


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer these problems."""
    content = {"application/problem+json": {"schema": {"$ref": _PROBLEM}}}
    return {status: {"description": _MEANINGS[status], "content": content} for status in statuses}


def body_of(model: str, *, required: bool = True) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads its body itself (`api.bodies`)."""
    schema = {"$ref": f"#/components/schemas/{model}"}
    return {
        "requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}
    }


_PROBLEM = "#/components/schemas/ProblemRead"
_MEANINGS = {
    400: "The request cannot be understood.",
    401: "No valid API key.",
    403: "The key lacks a scope.",
    404: "There is no such thing, or it is not yours.",
    409: "Not possible now.",
    410: "It was deleted.",
    429: "Too many requests, or a quota is used up.",
    412: "It has changed since you looked.",
    428: "Say with If-Match which state you know.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    416: "The range lies outside the file.",
    422: "The request is not valid.",
    503: "A part of the service is down.",
}
_STRING = {"type": "string"}
_NO_NUL = "^[^\\u0000]*$"
_CLOSED = frozenset({"pattern", "enum", "const", "format"})
"""What already says which texts there are."""
_SOURCE: Mapping[str, Any] = {
    **_STRING,
    "minLength": 1,
    "pattern": r"^(/.*|[\w.-]+(/[\w.-]+)?(:[\w.-]+)?)$",
    "description": "`org/name`, `org/name:config`, `file_…`, or a path on the worker.",
}
_MODEL: Mapping[str, Any] = {
    **_STRING,
    "minLength": 1,
    "pattern": r"^(/.*|[\w.-]+(/[\w.-]+)?(@[\w./-]*)?)$",
    "description": "`org/name`, `org/name@revision`, or a path on the worker.",
}
_SIMPLE_FORMS: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("JobCreate", "model"): _MODEL,
    ("DataPreviewRequest", "model"): _MODEL,
    ("DataPreviewRequest", "data"): _SOURCE,
    ("JobCreate", "target"): {
        **_STRING,
        "pattern": r"^[1-9][0-9]{0,5}[KMB]$|^[1-9][0-9]?%$",
        "description": "`100M` parameters, or `30%` of the prunable parameters removed.",
    },
    ("JobCreate", "data"): _SOURCE,
    ("Data", "train"): {**_SOURCE, "description": f"One domain: {_SOURCE['description']}"},
    ("Data", "evaluation"): _SOURCE,
    ("Domain", "source"): _SOURCE,
}
"""Where a person may write a string for an object: the validators accept it, so it is said."""


def install_openapi(app: FastAPI, *, models: Sequence[type[BaseModel]]) -> None:
    """Complete the document: models that routes read by themselves, and the simple forms."""
    derive = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = derive()
            schemas = document["components"]["schemas"]
            for model in models:
                _add_model(schemas, model)
            _add_simple_forms(schemas)
            _drop_default_validation(document)
            _drop_null_parameters(document)
            _forbid_nul(document)
            _add_rate_limit(document)
        return derive()

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it.


def _add_model(schemas: dict[str, Any], model: type[BaseModel]) -> None:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    for name, part in schema.pop("$defs", {}).items():
        schemas.setdefault(name, part)
    schemas[model.__name__] = schema


def _add_simple_forms(schemas: dict[str, Any]) -> None:
    for (model, field), form in _SIMPLE_FORMS.items():
        long_form = schemas[model]["properties"][field]
        described = {
            key: long_form.pop(key) for key in ("title", "description") if key in long_form
        }
        schemas[model]["properties"][field] = {**described, "anyOf": [dict(form), long_form]}


def _drop_default_validation(document: dict[str, Any]) -> None:
    """Replace the framework's own 422 shape, which this API never answers."""
    problem = problems(422)[422]
    for operations in document["paths"].values():
        for operation in operations.values():
            content = operation.get("responses", {}).get("422", {}).get("content", {})
            if "application/json" in content:
                operation["responses"]["422"] = problem
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


def _drop_null_parameters(document: dict[str, Any]) -> None:
    """A parameter is sent or not: no text stands for null."""
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                schema = parameter["schema"]
                forms = [form for form in schema.get("anyOf", ()) if form != {"type": "null"}]
                if len(forms) == 1:
                    del schema["anyOf"]
                    schema.update(forms[0])


def _forbid_nul(document: dict[str, Any]) -> None:
    """Say of every free text in a request that U+0000 is refused (`api.bodies`)."""
    schemas = document["components"]["schemas"]
    todo: list[Any] = [
        part
        for operations in document["paths"].values()
        for operation in operations.values()
        for part in (
            operation.get("requestBody", {}).get("content", {}).get("application/json"),
            *(one for one in operation.get("parameters", ()) if one["in"] == "query"),
        )
    ]
    seen: set[str] = set()
    while todo:
        part = todo.pop()
        if isinstance(part, list):
            todo += part
        elif isinstance(part, dict):
            if part.get("type") == "string" and not _CLOSED & part.keys():
                part["pattern"] = _NO_NUL
            if "propertyNames" in part:
                part["propertyNames"].setdefault("pattern", _NO_NUL)
            todo += part.values()
            name = str(part.get("$ref", "")).rpartition("/")[2]
            if name and name not in seen:
                seen.add(name)
                todo.append(schemas[name])


def _add_rate_limit(document: dict[str, Any]) -> None:
    """Whoever asks with a key may be told to wait."""
    for operations in document["paths"].values():
        for operation in operations.values():
            if operation.get("security"):
                operation["responses"].setdefault("429", problems(429)[429])
