"""The command line as a real subprocess, as the worker starts it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
import torch
from safetensors.torch import load_file

from pruning.__main__ import main
from pruning.events import (
    Event,
    RunFailed,
    RunFinished,
    RunStopped,
    StepFinished,
    parse_event,
)
from pruning.manifest import read_manifest
from pruning.recipe import Recipe
from tests.pruning.recipes import make_recipe, write_corpus

SLOW = {"schedule": {"num_increments": 3, "num_tokens": 90 * 256, "token_share": "constant"}}
"""Enough steps that a signal sent at the first of an increment comes before its last."""


@pytest.fixture
def recipe(tiny_model_dir: Path, tmp_path: Path) -> Recipe:
    corpus = write_corpus(tmp_path / "corpus.jsonl", num_documents=120)
    return make_recipe(tiny_model_dir, corpus, **SLOW)


@pytest.fixture
def recipe_file(recipe: Recipe, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.json"
    path.write_text(recipe.model_dump_json())
    return path


@contextmanager
def started(*arguments: str | Path) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """The child process and the reading end of its events."""
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "pruning", *_run_arguments(arguments, writing)],
        pass_fds=[writing],
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    try:
        with os.fdopen(reading, encoding="utf-8") as pipe:
            yield process, pipe
    finally:
        process.kill()
        process.communicate()


def _run_arguments(arguments: tuple[str | Path, ...], events_fd: int) -> list[str]:
    options = ["--events-fd", str(events_fd), "--device", "cpu", "--threads", "1"]
    return ["run", *map(str, arguments), *options]


def run_here(*arguments: str | Path) -> tuple[int, list[Event]]:
    """The same command in this process, without the seconds that a start takes."""
    reading, writing = os.pipe()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        exit_code = main(_run_arguments(arguments, writing))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        return exit_code, [parse_event(line) for line in pipe]


def run_to_end(*arguments: str | Path) -> tuple[int, list[Event]]:
    with started(*arguments) as (process, pipe):
        events = [parse_event(line) for line in pipe]
        return process.wait(), events


def final_weights(out_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(out_dir / "increment-0003" / "training_state" / "weights.safetensors")


def test_sigterm_then_resume_reaches_the_same_model_as_an_uninterrupted_run(
    recipe_file: Path, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    exit_code, events = run_here(recipe_file, "--out", whole)
    assert exit_code == 0
    assert isinstance(events[-1], RunFinished)

    with started(recipe_file, "--out", cut) as (process, pipe):
        seen = []
        for line in pipe:
            seen.append(parse_event(line))
            if isinstance(seen[-1], StepFinished) and seen[-1].step == 31:
                process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    assert isinstance(seen[-1], RunStopped)
    assert seen[-1].increment == 1
    stopped_at = max(event.step for event in seen if isinstance(event, StepFinished))
    assert stopped_at < 60

    last = cut / "increment-0001"
    exit_code, events = run_to_end(recipe_file, "--out", cut, "--resume", last)
    assert exit_code == 0
    steps = [event.step for event in events if isinstance(event, StepFinished)]
    assert steps == list(range(stopped_at + 1, 91))
    expected, found = final_weights(whole), final_weights(cut)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    read_manifest(cut / "increment-0003").verify(cut / "increment-0003")


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"target": "a lot"}, "invalid_recipe", "target"),
        ({"model": "/absent/model"}, "model_not_found", "model.path"),
        ({"data": {"train": "/absent/text.jsonl"}}, "data_invalid", "data.train"),
    ],
)
def test_what_must_be_changed_first_exits_78_and_says_what(
    recipe_file: Path, tmp_path: Path, change: dict[str, object], code: str, param: str
) -> None:
    recipe_file.write_text(json.dumps({**json.loads(recipe_file.read_text()), **change}))
    exit_code, events = run_here(recipe_file, "--out", tmp_path / "out")
    assert exit_code == 78
    failure = events[-1]
    assert isinstance(failure, RunFailed)
    assert failure.code == code
    assert failure.param is not None
    assert failure.param.startswith(param)
    assert not failure.retryable


def test_a_bad_recipe_ends_the_real_process_with_78(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text('{"model": "org/name"}')
    exit_code, events = run_to_end(tmp_path / "recipe.json", "--out", tmp_path / "out")
    assert exit_code == 78
    (failure,) = events
    assert isinstance(failure, RunFailed)
    assert failure.param == "target"


def test_a_damaged_checkpoint_exits_75(recipe_file: Path, tmp_path: Path) -> None:
    exit_code, events = run_here(
        recipe_file, "--out", tmp_path / "out", "--resume", tmp_path / "absent"
    )
    assert exit_code == 75
    assert isinstance(events[-1], RunFailed)
    assert events[-1].code == "checkpoint_corrupt"


def test_without_an_events_pipe_a_person_can_read_along_and_inspect_the_result(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    recipe = make_recipe(
        tiny_model_dir,
        write_corpus(tmp_path / "corpus.jsonl"),
        schedule={"num_increments": 1, "num_tokens": 512},
    )
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    command = [sys.executable, "-m", "pruning"]
    run = subprocess.run(
        [*command, "run", tmp_path / "recipe.json", "--out", tmp_path / "out", "--threads", "1"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "increment 1: checkpoint in increment-0001" in run.stderr
    assert "finished: target_reached" in run.stderr
    inspected = subprocess.run(
        [*command, "inspect", "--verify", tmp_path / "out" / "increment-0001"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "9 files verified" in inspected.stdout
    assert "recovered" in inspected.stdout


def test_a_download_is_verified_without_the_training_state_that_it_leaves_out(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl")
    schedule = {"num_increments": 1, "num_tokens": 512}
    recipe = make_recipe(tiny_model_dir, corpus, schedule=schedule)
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    run_here(tmp_path / "recipe.json", "--out", tmp_path / "out")
    downloaded = tmp_path / "out" / "increment-0001"
    shutil.rmtree(downloaded / "training_state")
    assert main(["inspect", "--verify", str(downloaded)]) == 0
    assert "training_state/ is absent" in capsys.readouterr().out
    (downloaded / "model.safetensors").unlink()
    assert main(["inspect", "--verify", str(downloaded)]) == 78
