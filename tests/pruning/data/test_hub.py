"""Datasets of a hub, streamed by the hub's own client from a hub on this machine."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pruning.data.hub import TOKEN, local_hub

ROWS = [{"text": f"document {number}", "body": f"body {number}"} for number in range(5)]
CONTENT = "".join(json.dumps(row) + "\n" for row in ROWS).encode()

# The address of the hub is read when its client is imported: a process of its own has its own.
SCRIPT = """
import json, sys
from pruning.data.sources import ReadReport, read_documents
from pruning.errors import InvalidData
from pruning.recipe_parts.data import HubData
found = []
for fields in json.loads(sys.argv[1]):
    try:
        found.append(list(read_documents(HubData(**fields), ReadReport())))
    except InvalidData as error:
        found.append(f"{error.code}: {error.message}")
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    repositories = {"org/open": {"train.jsonl": CONTENT}, "org/gated": {"train.jsonl": CONTENT}}
    with local_hub(repositories, gated=frozenset({"org/gated"})) as address:
        yield address


def read(hub: str, home: Path, *asked: dict[str, Any], token: str | None = None) -> list[Any]:
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_ENDPOINT": hub,
        "HF_HOME": str(home),
        **({"HF_TOKEN": token} if token else {}),
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(asked)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return list(json.loads(done.stdout.splitlines()[-1]))


def test_a_dataset_is_streamed_and_what_is_not_there_is_named(hub: str, tmp_path: Path) -> None:
    text, body, missing, gated, split = read(
        *(hub, tmp_path, {"id": "org/open"}, {"id": "org/open", "text_field": "body"}),
        *({"id": "org/none"}, {"id": "org/gated"}, {"id": "org/open", "split": "tset"}),
    )
    assert text == [row["text"] for row in ROWS]
    assert body == [row["body"] for row in ROWS]
    assert missing.startswith("data_invalid: dataset org/none:")
    assert gated.startswith("data_invalid: dataset org/gated:")
    assert "tset" in split


def test_a_credential_opens_a_gated_dataset(hub: str, tmp_path: Path) -> None:
    (text,) = read(hub, tmp_path, {"id": "org/gated"}, token=TOKEN)
    assert text == [row["text"] for row in ROWS]
