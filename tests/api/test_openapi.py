"""The OpenAPI document is the client's manual."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method} {path}", operation


@sqlite_only
def test_every_operation_and_parameter_is_described(app: FastAPI) -> None:
    document = app.openapi()
    for name, operation in operations(document):
        assert operation["summary"], name
        assert operation["description"], name
        for parameter in operation.get("parameters", []):
            if parameter["in"] != "path":
                assert parameter.get("description"), f"{name}: {parameter['name']}"


@sqlite_only
def test_every_field_that_is_answered_is_described(app: FastAPI) -> None:
    schemas = app.openapi()["components"]["schemas"]
    answered = [name for name in schemas if name.endswith(("Read", "Page", "List"))]
    assert len(answered) >= 10
    for name in answered:
        for field, schema in schemas[name].get("properties", {}).items():
            # A description equal to that of the type it refers to is written there only.
            of_type = schemas.get(str(schema.get("$ref")).rpartition("/")[2], {})
            assert schema.get("description") or of_type.get("description"), f"{name}.{field}"


@sqlite_only
def test_every_reference_in_the_document_resolves(app: FastAPI) -> None:
    document = app.openapi()

    def check(part: Any) -> None:
        if isinstance(part, dict):
            reference = part.get("$ref")
            if isinstance(reference, str):
                assert reference.removeprefix("#/components/schemas/") in schemas, reference
            for value in part.values():
                check(value)
        elif isinstance(part, list):
            for value in part:
                check(value)

    schemas = document["components"]["schemas"]
    check(document["paths"])
    check(schemas)


@sqlite_only
def test_the_simple_forms_are_documented(app: FastAPI) -> None:
    properties = app.openapi()["components"]["schemas"]["JobCreate"]["properties"]
    for field in ("model", "target", "data"):
        assert any(form.get("type") == "string" for form in properties[field]["anyOf"])


@sqlite_only
def test_no_answer_is_documented_in_the_frameworks_own_error_shape(app: FastAPI) -> None:
    assert "HTTPValidationError" not in str(app.openapi())


@sqlite_only
def test_the_document_is_served_without_a_key(anonymous: TestClient) -> None:
    assert anonymous.get("/openapi.json").json()["info"]["title"] == "Espalier"


def test_importing_the_application_does_not_import_torch() -> None:
    code = "import api.main, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
