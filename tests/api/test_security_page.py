"""docs/security.md names a test for every threat, and each of them is there."""

import ast
import re
from pathlib import Path

import pytest
from kombu.exceptions import ContentDisallowed
from kombu.serialization import dumps, loads

from registry.queue import celery_app
from registry.settings import Settings

ROOT = Path(__file__).parents[2]
ROWS = [
    line
    for line in (ROOT / "docs" / "security.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| threat")
]


def functions_of(path: str) -> set[str]:
    """The names of the functions in a file."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_threat_has_a_test_that_exists() -> None:
    assert len(ROWS) >= 15
    for row in ROWS:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert named, row
        assert [name for path, name in named if name not in functions_of(path)] == []


def test_the_broker_takes_no_pickle(tmp_path: Path) -> None:
    accepted = celery_app(Settings(data_dir=tmp_path)).conf.accept_content
    assert list(accepted) == ["json"]
    content_type, encoding, body = dumps({"job_id": "job_0"}, serializer="pickle")
    with pytest.raises(ContentDisallowed):
        loads(body, content_type, encoding, accept={"application/json"})
