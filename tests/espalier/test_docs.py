"""Every example of docs/api.md runs against a real server."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from espalier.exit_codes import MEANINGS
from tests.espalier.conftest import Furnished

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


def examples(language: str) -> list[str]:
    """The code blocks in a language, from top to bottom."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    ("language", "least", "program"),
    [("bash", 12, ["bash", "-euo", "pipefail", "-c"]), ("python", 2, [sys.executable, "-c"])],
)
def test_every_example_runs(
    server: Furnished, tmp_path: Path, language: str, least: int, program: list[str]
) -> None:
    found = examples(language)
    assert len(found) >= least
    environment = {
        **os.environ,
        "ESPALIER_URL": server.url,
        "ESPALIER_API_KEY": server.holder.secret,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        [*program, "\n".join(found)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "Error" not in done.stderr


def test_the_page_lists_every_exit_code() -> None:
    rows = dict(re.findall(r"^\| (\d+) \| (.+) \|$", PAGE, re.MULTILINE))
    assert rows == {str(code): meaning for code, meaning in MEANINGS.items()}
