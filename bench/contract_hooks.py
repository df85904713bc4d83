"""What schemathesis must be told of the API: a media type, and ids of things that are there."""

import json
import os
from typing import Any

import schemathesis

IDS: dict[str, str] = json.loads(os.environ.get("CONTRACT_IDS", "{}"))


@schemathesis.serializer("application/partial-upload")
def send_bytes(_context: Any, value: Any) -> bytes:
    """A part of an upload is bytes, as `application/octet-stream` is."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


@schemathesis.hook
def map_path_parameters(
    context: schemathesis.HookContext,  # noqa: ARG001  # Hooks are told by it where they are.
    path_parameters: dict[str, Any] | None,
) -> dict[str, Any] | None:
    """Half of the made-up ids become those of real things, or fuzzing would see little but 404."""
    if not path_parameters or len(str(path_parameters)) % 2:
        return path_parameters
    return {name: IDS.get(name, value) for name, value in path_parameters.items()}


@schemathesis.hook
def filter_case(
    context: schemathesis.HookContext,  # noqa: ARG001  # Hooks are told by it where they are.
    case: schemathesis.Case,
) -> bool:
    """No header is refused for being unknown (RFC 9110 §5.1)."""
    return "x-schemathesis-unknown-property" not in (case.headers or {})
