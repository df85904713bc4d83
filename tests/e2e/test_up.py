"""`espalier up`, from a request to a model that opens, and through everything that may die."""

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from pruning.manifest import read_manifest
from tests.e2e.stack import (
    NUM_INCREMENTS,
    Up,
    assert_gone,
    committed_increments,
    tiny_request,
    wait_for_increment,
    wait_for_success,
    wait_until,
)

ALL_INCREMENTS = list(range(1, NUM_INCREMENTS + 1))
LONG = 60_000
"""Tokens of a job that lasts long enough to be killed in the middle."""


def test_a_request_becomes_a_model_that_plain_transformers_opens(
    up: Up, inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    job = wait_for_success(up.client, up.client.submit(tiny_request(*inputs)).id)
    last = up.client.list_checkpoints(job.id)[-1]
    assert job.outcome == "target_reached"
    assert committed_increments(up.client, job.id) == ALL_INCREMENTS

    files = up.client.download(last.id, tmp_path)
    manifest = read_manifest(tmp_path)
    assert {f.path: f.sha256 for f in files} | {"manifest.json": ""} == {
        path: digest.sha256
        for path, digest in manifest.files.items()
        if not path.startswith("training_state/")
    } | {"manifest.json": ""}
    assert _parameters_in_a_fresh_process(tmp_path) == last.params == manifest.num_parameters


def _parameters_in_a_fresh_process(directory: Path) -> int:
    program = (
        "import sys, espalier.loading\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "print(model.num_parameters())\n"
    )
    done = subprocess.run(
        (sys.executable, "-c", program, str(directory)), capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_a_killed_child_costs_at_most_its_increment(up: Up, inputs: tuple[Path, Path]) -> None:
    job = up.client.submit(tiny_request(*inputs, num_tokens=LONG))
    wait_for_increment(up.client, job.id, 1)
    up.find("pruning").kill()
    job = wait_for_success(up.client, job.id)
    assert committed_increments(up.client, job.id) == ALL_INCREMENTS
    assert job.attempt > 1


def test_a_killed_worker_takes_its_child_along_and_another_goes_on(
    up: Up, inputs: tuple[Path, Path]
) -> None:
    job = up.client.submit(tiny_request(*inputs, num_tokens=LONG))
    wait_for_increment(up.client, job.id, 1)
    child = up.find("pruning")
    up.find("celery").kill()
    assert_gone([child])
    job = wait_for_success(up.client, job.id)
    assert committed_increments(up.client, job.id) == ALL_INCREMENTS
    assert job.attempt > 1


def test_a_second_up_on_the_same_data_is_refused(up: Up) -> None:
    second = subprocess.run(
        (sys.executable, "-m", "espalier", "up", "--port", "0", "--data-dir", str(up.data_dir)),
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert second.returncode == 1
    assert f"process {up.process.pid} already serves {up.data_dir}" in second.stderr


def test_only_the_owner_can_look_into_the_data_directory(up: Up) -> None:
    assert up.data_dir.stat().st_mode & 0o777 == 0o700
    assert (up.data_dir / "admin.key").stat().st_mode & 0o777 == 0o600


def test_a_start_that_takes_too_long_leaves_no_process_behind(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    data_dir = tmp_path / "data"
    with pytest.raises(AssertionError, match="up to be ready"):
        Up(data_dir, inputs[0].parent, ready_seconds=1)
    of_this_up = [p for p in psutil.process_iter() if str(data_dir) in _environment_of(p)]
    assert_gone(of_this_up)


def _environment_of(process: psutil.Process) -> str:
    try:
        return " ".join((*process.cmdline(), *process.environ().values()))
    except psutil.Error:
        return ""


def test_a_job_survives_ctrl_c_and_then_the_death_of_everything(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    with ExitStack() as ups:

        def start() -> Up:
            up = Up(tmp_path / "data", inputs[0].parent)
            ups.callback(up.close)
            return up

        first = start()
        job = first.client.submit(tiny_request(*inputs, num_tokens=LONG))
        wait_for_increment(first.client, job.id, 1)
        tree = first.tree()
        assert first.interrupt() == 0
        assert_gone(tree, seconds=1)

        second = start()
        wait_until(
            lambda: second.client.get(job.id).status == "running", seconds=30, what="it to go on"
        )
        wait_for_increment(second.client, job.id, 2)
        tree = second.tree()
        second.kill_everything()
        assert_gone(tree)

        third = start()
        wait_for_success(third.client, job.id)
        assert committed_increments(third.client, job.id) == ALL_INCREMENTS
        assert third.interrupt() == 0
