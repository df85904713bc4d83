"""`make demo` without its download: interrupted, run again, and true to its last line."""

import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from tests.e2e.stack import IMPATIENT, assert_gone, wait_until, write_model_and_text


def test_the_demo_goes_on_after_ctrl_c_and_ends_with_its_table(tmp_path: Path) -> None:
    # Text enough that four increments are not over before the interrupt arrives.
    model, text = write_model_and_text(
        tmp_path / "inputs", intermediate_size=256, num_documents=2400
    )
    command = [sys.executable, "-m", "espalier.demo", "--directory", str(tmp_path / "demo")]
    command += ["--model", str(model), "--data", str(text), "--target", "30%"]

    log = tmp_path / "first.log"
    first = _start([*command, "--tokens", "240000"], log)
    wait_until(lambda: "(base)" in log.read_text(), seconds=180, what="a first evaluation")
    tree = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(signal.SIGINT)
    assert first.wait(60) == 130
    assert_gone(tree, seconds=1)

    log = tmp_path / "second.log"
    second = _start([*command, "--tokens", "240000"], log)
    assert second.wait(240) == 0, log.read_text()
    assert _job(log) == _job(tmp_path / "first.log")
    _assert_every_cell_is_filled(log.read_text())


def _start(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    environment = {**IMPATIENT, "PATH": "/usr/bin:/bin", "COLUMNS": "120"}
    with log.open("wb") as output:
        return subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, preexec_fn=_hear_interrupts
        )


def _hear_interrupts() -> None:
    # A shell that runs the tests in its background has them, and what they start, ignore these.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _job(log: Path) -> str:
    return re.findall(r"job_[0-9a-f]{32}", log.read_text())[0]


def _assert_every_cell_is_filled(output: str) -> None:
    rows = {line.split("│")[1].strip(): line for line in output.splitlines() if "│" in line}
    for name in ("parameters", "perplexity on held-out text", "prefill, tokens/s"):
        assert re.search(r"\d", rows[name]), output
        assert " - " not in rows[name], output
    assert {"dense", "1", "2", "3"} <= set(rows)
    assert re.search(r"increment 4: checkpoint of 0\.\d+M parameters", output)
    assert "every sha256 is right" in output
    assert output.rstrip().endswith("nothing is left running")
