"""The Python examples of docs/serving.md and the README, on checkpoints as published."""

import re
from pathlib import Path

import pytest

from pruning.export.export import export_checkpoint, open_canonical
from tests.pruning.export.tiny import save_tiny_checkpoint

ROOT = Path(__file__).parents[3]


def python_of(page: str) -> str:
    """Every Python example of a page, from top to bottom."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))


def test_every_python_example_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    checkpoint = save_tiny_checkpoint(tmp_path / "model")
    export_checkpoint(open_canonical(checkpoint), "remote_code", checkpoint / "exports")
    written = python_of("docs/serving.md")
    assert written.count("CHECKPOINT") == written.count("from_pretrained") == 2
    exec(written.replace("CHECKPOINT", str(checkpoint)), {})


def test_the_readme_opens_a_checkpoint_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny_checkpoint(tmp_path / "smaller")
    monkeypatch.chdir(tmp_path)
    written = python_of("README.md")
    assert written.count("./smaller") == 1
    exec(written, {})
