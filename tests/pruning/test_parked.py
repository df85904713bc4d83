"""`python -m pruning wait` as a real process."""

import json
import os
import subprocess
import sys
from pathlib import Path

from pruning.events import RunFailed, parse_event


def test_a_waiting_process_runs_what_it_is_told_and_prints_to_its_log(tmp_path: Path) -> None:
    recipe, log = tmp_path / "recipe.json", tmp_path / "log"
    recipe.write_text("no recipe")
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "pruning", "wait"], stdin=subprocess.PIPE, pass_fds=[writing]
    )
    os.close(writing)
    arguments = [str(recipe), "--out", str(tmp_path / "out"), "--events-fd", str(writing)]
    process.communicate(json.dumps({"arguments": arguments, "log": str(log)}).encode())
    with os.fdopen(reading, encoding="utf-8") as pipe:
        [failure] = [parse_event(line) for line in pipe]
    assert isinstance(failure, RunFailed)
    assert failure.code == "invalid_recipe"
    assert process.returncode == 78
    assert log.exists()
