"""What schemathesis must be told of the API: a media type, and ids of things that are there."""

import json
import os
from typing import Any

import schemathesis
from schemathesis.core.parameters import ParameterLocation
from schemathesis.generation import GenerationMode
from schemathesis.generation.meta import TestPhase

IDS: dict[str, str] = json.loads(os.environ.get("CONTRACT_IDS", "{}"))


@schemathesis.serializer("application/partial-upload")
def send_bytes(_context: Any, value: Any) -> bytes:
    """A part of an upload is bytes, as `application/octet-stream` is."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


@schemathesis.hook
def map_case(
    context: schemathesis.HookContext,  # noqa: ARG001  # Hooks are told by it where they are.
    case: schemathesis.Case[Any],
) -> schemathesis.Case[Any]:
    """Half of the made-up ids become those of real things, or fuzzing would see little but 404.

    Those that were made up to be refused stay, or the tool would wait for the refusal; and those of
    a scenario, whose ids are of what its steps have created.
    """
    if case.meta is None or case.meta.phase.name is TestPhase.STATEFUL:
        return case
    made = case.meta.components.get(ParameterLocation.PATH)
    if made is None or made.mode is GenerationMode.NEGATIVE or len(str(case.path_parameters)) % 2:
        return case
    case.path_parameters = {n: IDS.get(n, value) for n, value in case.path_parameters.items()}
    return case


@schemathesis.hook
def filter_case(
    context: schemathesis.HookContext,  # noqa: ARG001  # Hooks are told by it where they are.
    case: schemathesis.Case[Any],
) -> bool:
    """No header is refused for being unknown (RFC 9110 §5.1)."""
    return "x-schemathesis-unknown-property" not in (case.headers or {})
