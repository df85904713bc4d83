"""The OpenAPI document is versioned, and what clients rely on does not change unannounced."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from openapi_spec_validator import validate

from tests.api.compatibility import breaking_changes

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

VERSIONED = Path(__file__).parents[2] / "docs" / "openapi.json"
HOW = "if that is meant, say so in docs/api.md and run: python -m api.versioned_openapi"


@pytest.fixture
def document(app: FastAPI) -> dict[str, Any]:
    """The document as it is served now."""
    found: dict[str, Any] = json.loads(json.dumps(app.openapi()))
    return found


def test_nothing_that_was_promised_is_broken(document: dict[str, Any]) -> None:
    promised = json.loads(VERSIONED.read_text())
    assert list(breaking_changes(promised, document)) == [], HOW


def test_the_document_is_valid_openapi(document: dict[str, Any]) -> None:
    validate(document)


def _drop_operation(document: dict[str, Any]) -> None:
    del document["paths"]["/v1/jobs/{job_id}"]["patch"]


def _need_parameter(document: dict[str, Any]) -> None:
    document["paths"]["/v1/jobs"]["get"]["parameters"][0]["required"] = True


def _drop_parameter(document: dict[str, Any]) -> None:
    document["paths"]["/v1/jobs"]["get"]["parameters"].pop()


def _drop_field(document: dict[str, Any]) -> None:
    del document["components"]["schemas"]["JobRead"]["properties"]["progress"]


def _let_field_be_null(document: dict[str, Any]) -> None:
    field = document["components"]["schemas"]["JobRead"]["properties"]["version"]
    field["anyOf"] = [{"type": field.pop("type")}, {"type": "null"}]


def _need_field(document: dict[str, Any]) -> None:
    document["components"]["schemas"]["JobCreate"]["required"].append("name")


def _narrow_values(document: dict[str, Any]) -> None:
    schema = document["components"]["schemas"]["PauseRequest"]["properties"]["checkpoint"]
    schema["enum"].remove("latest")


def _drop_answer(document: dict[str, Any]) -> None:
    del document["paths"]["/v1/jobs"]["post"]["responses"]["201"]


@pytest.mark.parametrize(
    "change",
    [
        _drop_operation,
        _need_parameter,
        _drop_parameter,
        _drop_field,
        _let_field_be_null,
        _need_field,
        _narrow_values,
        _drop_answer,
    ],
)
def test_what_would_break_a_client_is_noticed(
    document: dict[str, Any], change: Callable[[dict[str, Any]], None]
) -> None:
    changed = copy.deepcopy(document)
    change(changed)
    assert len(list(breaking_changes(document, changed))) == 1


def test_what_is_added_breaks_nothing(document: dict[str, Any]) -> None:
    added = copy.deepcopy(document)
    added["paths"]["/v1/new"] = added["paths"]["/v1/jobs"]
    added["components"]["schemas"]["JobRead"]["properties"]["new"] = {"type": "string"}
    added["components"]["schemas"]["JobCreate"]["properties"]["new"] = {"type": "string"}
    assert list(breaking_changes(document, added)) == []
