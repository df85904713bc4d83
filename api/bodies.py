"""Reading request bodies strictly: JSON as RFC 8259 has it, and nothing no database can keep."""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from api.errors import Problem

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Body(Generic[Model]):
    """A body as it was written and as it was understood."""

    written: dict[str, Any]
    value: Model


def json_body(
    model: type[Model], *, optional: bool = False
) -> Callable[[Request], Awaitable[Body[Model]]]:
    """A dependency that reads a body of this model; an absent one is `{}` where `optional`.

    FastAPI's own reading goes through `json.loads`, which lets NaN and lone surrogates pass.
    """

    async def read(request: Request) -> Body[Model]:
        content = await request.body()
        if optional and not content:
            return Body(written={}, value=model())
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise Problem("unsupported_media_type", "Send the body as application/json.")
        return parse_body(model, content)

    return read


def parse_body(model: type[Model], content: bytes) -> Body[Model]:
    """The body of these bytes.

    Raises:
        RequestValidationError: it is none.
        Problem: 422, it holds text that no database keeps.
    """
    try:
        value = model.model_validate_json(content)
    except ValidationError as error:
        found = [{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_url=False)]
        raise RequestValidationError(found) from error
    written = from_json(content)
    # JSON has no other way to write it.
    if b"\\u0000" in content and _holds_nul(written):
        raise Problem("validation_error", "Text may not contain the character U+0000.")
    if found := list(_taken_for_others(written, value)):
        raise RequestValidationError(found)
    return Body(written=written, value=value)


def _taken_for_others(
    written: object, value: object, place: tuple[str | int, ...] = ()
) -> Iterator[dict[str, Any]]:
    """Where pydantic has read a number or a truth value from what JSON keeps apart from it."""
    if isinstance(written, dict) and isinstance(value, BaseModel):
        for name in (name for name in written if name in type(value).model_fields):
            yield from _taken_for_others(written[name], getattr(value, name), (*place, name))
    elif isinstance(written, list) and isinstance(value, list | tuple):
        for number, pair in enumerate(zip(written, value, strict=False)):
            yield from _taken_for_others(*pair, (*place, number))
    elif isinstance(written, bool | str) and written != "auto" and type(value) in (int, float):
        yield _error("number_type", place, "Input should be a number")
    elif isinstance(value, bool) and not isinstance(written, bool):
        yield _error("bool_type", place, "Input should be true or false")


def _error(kind: str, place: tuple[str | int, ...], message: str) -> dict[str, Any]:
    return {"type": kind, "loc": ("body", *place), "msg": message}


def _holds_nul(value: object) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(_holds_nul(part) for pair in value.items() for part in pair)
    return isinstance(value, list) and any(map(_holds_nul, value))
