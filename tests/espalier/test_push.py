"""`espalier push`, against a hub of this test's own that speaks the hub's protocol."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

TOKEN = "hf_secretsecretsecretsecret"
REPOSITORY = "someone/smaller"
CARD = "---\nlicense: apache-2.0\n---\n# Smaller\n"


@dataclass
class Hub:
    """What the hub was told, and holds."""

    url: str = ""
    created: list[dict[str, Any]] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.messages.append(value["summary"])
            elif line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            else:
                self.files[value["path"]] = self.stored[value["oid"]]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer({"error": "Invalid credentials"}, status=401)
        elif self.path == "/api/repos/create":
            self.hub.created.append(json.loads(body))
            self.answer({"url": f"{self.hub.url}/{REPOSITORY}", "name": REPOSITORY})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            self.answer({"files": [self.mode(file) for file in json.loads(body)["files"]]})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [self.action(blob) for blob in json.loads(body)["objects"]]
            self.answer({"transfer": "basic", "objects": objects})
        else:
            self.hub.commit([json.loads(line) for line in body.splitlines()])
            url = f"{self.hub.url}/{REPOSITORY}/commit/0123"
            self.answer({"commitUrl": url, "commitOid": "0123", "success": True})

    def mode(self, file: dict[str, Any]) -> dict[str, Any]:
        kind = "lfs" if file["path"].endswith(".safetensors") else "regular"
        return {"path": file["path"], "uploadMode": kind, "shouldIgnore": False}

    def action(self, blob: dict[str, Any]) -> dict[str, Any]:
        upload = {"href": f"{self.hub.url}/lfs/{blob['oid']}", "header": {}}
        return {**blob, "actions": {"upload": upload}}

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.stored[self.path.rsplit("/", 1)[1]] = body
        self.answer({})

    def answer(self, body: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "checkpoint"
    contents = {
        "README.md": CARD,
        "LICENSE": "Do as you like.",
        "config.json": "{}",
        "model.safetensors": "weights",
        "exports/gguf-f16/model.gguf": "weights in another format",
        "training_state/optimizer.safetensors": "moments",
    }
    for name, text in contents.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    files = {
        name: {"sha256": hashlib.sha256(text.encode()).hexdigest(), "num_bytes": len(text)}
        for name, text in contents.items()
    }
    (directory / "manifest.json").write_text(json.dumps({"files": files}))
    return directory


def push(
    checkpoint: Path, hub: Hub, *options: str, token: str = TOKEN
) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", "espalier", "push", str(checkpoint), REPOSITORY, *options],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_model_card_licence_and_exports_go_to_the_hub_in_one_commit(
    checkpoint: Path, hub: Hub
) -> None:
    done = push(checkpoint, hub, "--message", "Smaller")
    assert done.returncode == 0, done.stderr
    assert f"{hub.url}/{REPOSITORY}/commit/0123" in done.stdout
    assert hub.messages == ["Smaller"]
    assert set(hub.files) == {
        "README.md",
        "LICENSE",
        "config.json",
        "model.safetensors",
        "exports/gguf-f16/model.gguf",
        "manifest.json",
    }
    for name, data in hub.files.items():
        assert data == (checkpoint / name).read_bytes()
    assert hub.created[0]["visibility"] == "private"


def test_exports_can_stay_here_and_the_repository_can_be_public(checkpoint: Path, hub: Hub) -> None:
    done = push(checkpoint, hub, "--no-exports", "--public", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["repository"] == REPOSITORY
    assert not any(name.startswith("exports/") for name in hub.files)
    assert hub.created[0]["visibility"] == "public"


def test_a_refusal_is_told_without_the_token(checkpoint: Path, hub: Hub) -> None:
    other = "hf_anothertokenthatisnotknown"
    done = push(checkpoint, hub, token=other)
    assert done.returncode == 3
    assert f"the hub refused {REPOSITORY}" in done.stderr
    assert "401" in done.stderr
    assert other not in done.stdout + done.stderr
    assert hub.files == {}


def test_a_file_that_is_not_the_manifests_is_not_sent(checkpoint: Path, hub: Hub) -> None:
    (checkpoint / "model.safetensors").write_text("other weights")
    done = push(checkpoint, hub)
    assert done.returncode == 6
    assert "model.safetensors: missing, or not the file of the manifest" in done.stderr
    assert hub.created == []


def test_an_unknown_licence_is_pointed_out(checkpoint: Path, hub: Hub) -> None:
    card = CARD.replace("apache-2.0", "other\nlicense_name: same-as-base-model")
    (checkpoint / "README.md").write_text(card)
    listed = json.loads((checkpoint / "manifest.json").read_text())
    listed["files"]["README.md"]["sha256"] = hashlib.sha256(card.encode()).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps(listed))
    done = push(checkpoint, hub)
    assert done.returncode == 0, done.stderr
    assert "names no licence" in done.stderr
