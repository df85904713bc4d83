"""Requests as values: what to send and how to read the answer, whoever sends it.

Every operation of the API is described once, as a function that returns a `Call`; an `Operation` in
a client's class turns it into a method that waits for the answer, or one to be awaited.
"""

import functools
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, overload

import httpx
from pydantic import BaseModel

P = ParamSpec("P")
T = TypeVar("T")
Resource = TypeVar("Resource", bound=BaseModel)
Read = Callable[[httpx.Response], T]


@dataclass(frozen=True, kw_only=True)
class Call(Generic[T]):
    """One request, safe to send twice; parameters that are None are left out."""

    method: str
    path: str
    read: Read[T]
    params: Mapping[str, Any] = field(default_factory=dict)
    json: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def query(self) -> dict[str, Any]:
        """The parameters that are given."""
        return {name: value for name, value in self.params.items() if value is not None}


def reading(model: type[Resource]) -> Read[Resource]:
    """Reads an answer as this resource."""
    return lambda response: model.model_validate_json(response.content)


def nothing(_response: httpx.Response) -> None:
    """Reads an answer that says nothing."""


def once(key: str | None = None) -> dict[str, str]:
    """Headers under which a POST that creates may be repeated."""
    return {"Idempotency-Key": key or uuid.uuid4().hex}


def matching(version: int | None) -> dict[str, str]:
    """Headers that insist on a version, if one is given."""
    return {} if version is None else {"If-Match": f'"v{version}"'}


class Sender(Protocol):
    """A client that waits for answers."""

    def send(self, call: Call[T], /) -> T:
        """The answer, read."""


class AsyncSender(Protocol):
    """A client whose answers are awaited."""

    def send(self, call: Call[T], /) -> Awaitable[T]:
        """The answer, read, once it is there."""


class Operation(Generic[P, T]):
    """A method made of a function that describes a request."""

    def __init__(self, describe: Callable[P, Call[T]]) -> None:
        self.describe = describe
        self.__doc__ = describe.__doc__

    @overload
    def __get__(self, client: None, owner: type) -> "Operation[P, T]": ...
    @overload
    def __get__(self, client: Sender, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncSender, owner: type) -> Callable[P, Awaitable[T]]: ...
    def __get__(self, client: Any, owner: type) -> Any:
        if client is None:
            return self

        @functools.wraps(self.describe)
        def call(*args: P.args, **given: P.kwargs) -> Any:
            return client.send(self.describe(*args, **given))

        return call
