"""Every example of docs/api.md, and the request of the README, run against a real server."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from espalier.exit_codes import MEANINGS
from tests.espalier.conftest import Furnished

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def examples(language: str, page: str = PAGE) -> list[str]:
    """The code blocks in a language, from top to bottom."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


def run(command: list[str], server: Furnished, directory: Path) -> subprocess.CompletedProcess[str]:
    """The command, where it finds the server, a key and this environment's programs."""
    environment = {
        **os.environ,
        "ESPALIER_URL": server.url,
        "ESPALIER_API_KEY": server.holder.secret,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    return subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("language", "least", "program"),
    [("bash", 12, ["bash", "-euo", "pipefail", "-c"]), ("python", 2, [sys.executable, "-c"])],
)
def test_every_example_runs(
    server: Furnished, tmp_path: Path, language: str, least: int, program: list[str]
) -> None:
    found = examples(language)
    assert len(found) >= least
    done = run([*program, "\n".join(found)], server, tmp_path)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "Error" not in done.stderr


def test_the_request_of_the_readme_creates_a_job(server: Furnished, tmp_path: Path) -> None:
    [request] = [block for block in examples("sh", README) if "curl" in block]
    done = run(["bash", "-euo", "pipefail", "-c", request], server, tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "queued"


def test_the_page_lists_every_exit_code() -> None:
    rows = dict(re.findall(r"^\| (\d+) \| (.+) \|$", PAGE, re.MULTILINE))
    assert rows == {str(code): meaning for code, meaning in MEANINGS.items()}
