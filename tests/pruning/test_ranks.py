"""A run spread over processes of this machine, started as the worker starts any run."""

import os
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

from pruning.checkpoint import load_checkpoint
from pruning.errors import InvalidRecipe
from pruning.events import Event, PruneFinished, RunFailed, RunFinished, StepFinished, parse_event
from pruning.manifest import read_manifest
from pruning.pipeline import run
from pruning.recipe import Recipe
from tests.pruning.recipes import make_recipe, write_corpus
from tests.pruning.tiny import make_tiny_model, make_tiny_tokenizer

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("inputs")
    make_tiny_model(attention_bias=False, mlp_bias=False).save_pretrained(directory / "model")
    make_tiny_tokenizer().save_pretrained(directory / "model")
    (directory / "text").mkdir()
    for seed, name in enumerate(("garden", "orchard")):
        write_corpus(directory / "text" / f"{name}.jsonl", seed=seed)
    return directory


def recipe_of(inputs: Path, recovery: dict[str, object] | None = None, **changes: object) -> Recipe:
    """With everything that looks at the model while it is spread, or that a cut has to follow."""
    training = {
        "sequence_length": 64,
        "batch_sequences": 5,
        "micro_batch_sequences": 2,
        "precision": "float32",
        "learning_rate": {"peak": 3e-3},
        "separate_documents": True,
        "average_decay": 0.5,
        "activation_checkpointing": True,
        "distillation": {"teacher": "previous", "weight": 0.5},
        **(recovery or {}),
    }
    text = inputs / "text"
    data = {
        "train": str(text),
        "held_out_fraction": 0.1,
        "mixture": {"kind": "dynamic", "update_steps": 2},
    }
    schedule = {"num_increments": 3, "num_tokens": 12 * 320, "token_share": "constant"}
    fields = {"recovery": training, "data": data, "schedule": schedule}
    return make_recipe(inputs / "model", text, **{**fields, **changes})


@pytest.fixture(scope="module")
def alone(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event]]:
    """The same run in one process: its checkpoints and events."""
    out_dir = tmp_path_factory.mktemp("alone")
    events: list[Event] = []
    run(recipe_of(inputs), out_dir, events.append, device="cpu")
    return out_dir, events


@pytest.fixture(scope="module")
def in_two(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event]]:
    """It in two processes."""
    out_dir = tmp_path_factory.mktemp("in_two")
    exit_code, events = run_to_end(recipe_of(inputs, processes=2), out_dir)
    assert exit_code == 0
    return out_dir, events


@contextmanager
def started(
    recipe: Recipe, out_dir: Path, *options: str
) -> Iterator[tuple[subprocess.Popen[bytes], IO[str]]]:
    recipe_file = out_dir / "recipe.json"
    recipe_file.write_text(recipe.model_dump_json())
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "pruning", "run", str(recipe_file), "--out", str(out_dir)]
    process = subprocess.Popen(
        [*command, "--events-fd", str(writing), "--device", "cpu", "--threads", "1", *options],
        pass_fds=[writing],
    )
    os.close(writing)
    try:
        with os.fdopen(reading, encoding="utf-8") as pipe:
            yield process, pipe
    finally:
        process.kill()
        process.wait()


def run_to_end(recipe: Recipe, out_dir: Path, *options: str) -> tuple[int, list[Event]]:
    with started(recipe, out_dir, *options) as (process, pipe):
        events = [parse_event(line) for line in pipe]
        return process.wait(), events


def losses(events: list[Event]) -> list[float]:
    return [event.loss for event in events if isinstance(event, StepFinished)]


def training_state(out_dir: Path) -> dict[str, torch.Tensor]:
    directory = out_dir / "increment-0003" / "training_state"
    weights = load_file(directory / "weights.safetensors")
    moments = load_file(directory / "optimizer.safetensors")
    return {name: tensor for name, tensor in (weights | moments).items() if name != "random_state"}


def assert_same_training(found: Path, expected: Path) -> None:
    ours, theirs = training_state(found), training_state(expected)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=TOLERANCE, atol=TOLERANCE)


def test_two_processes_follow_the_loss_path_of_one(
    alone: tuple[Path, list[Event]], in_two: tuple[Path, list[Event]]
) -> None:
    assert losses(in_two[1]) == pytest.approx(losses(alone[1]), abs=TOLERANCE)
    assert isinstance(in_two[1][-1], RunFinished)


def test_a_cut_of_a_spread_model_is_the_cut_of_a_whole_one(
    alone: tuple[Path, list[Event]], in_two: tuple[Path, list[Event]]
) -> None:
    cuts = [
        [event.widths for event in events if isinstance(event, PruneFinished)]
        for _, events in (alone, in_two)
    ]
    assert cuts[0] == cuts[1]
    plans = [read_manifest(out_dir / "increment-0003").plan for out_dir, _ in (alone, in_two)]
    assert plans[0] == plans[1]
    # Moments too: training after the cut has used those of the channels that stayed.
    assert_same_training(in_two[0], alone[0])


def test_four_processes_go_on_from_the_checkpoint_of_two(
    inputs: Path,
    alone: tuple[Path, list[Event]],
    in_two: tuple[Path, list[Event]],
    tmp_path: Path,
) -> None:
    resume = ("--resume", str(in_two[0] / "increment-0001"))
    exit_code, events = run_to_end(recipe_of(inputs, processes=4), tmp_path, *resume)
    assert exit_code == 0
    assert losses(events) == pytest.approx(losses(alone[1])[4:], abs=TOLERANCE)
    assert_same_training(tmp_path, alone[0])


def test_a_killed_process_ends_the_run_with_75_and_leaves_what_it_kept(
    inputs: Path, tmp_path: Path
) -> None:
    endless = {"num_increments": 1, "num_tokens": 10_000 * 320}
    recipe = recipe_of(
        inputs, {"checkpoint_seconds": 1e-9}, processes=2, schedule=endless, target="10%"
    )
    with started(recipe, tmp_path) as (process, pipe):
        steps = 0
        for line in pipe:
            steps += isinstance(parse_event(line), StepFinished)
            if steps == 2:
                break
        os.kill(last_rank(process), signal.SIGKILL)
        events = [parse_event(line) for line in pipe]
        assert process.wait() == 75
    failures = [event for event in events if isinstance(event, RunFailed)]
    assert [(event.code, event.retryable) for event in failures] == [("rank_lost", True)]
    assert "rank 1 of 2 was ended by SIGKILL" in failures[0].message
    kept = load_checkpoint(tmp_path / "partial-0001")
    assert kept.state["progress"]["step"] >= 1
    assert all(weight.isfinite().all() for weight in kept.model.parameters())


def last_rank(process: subprocess.Popen[bytes]) -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(children[-1])


def test_gpus_that_are_not_there_are_refused(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRecipe, match="wants 64 GPUs") as refusal:
        run(recipe_of(inputs, gpus=64), tmp_path, lambda _: None)
    assert refusal.value.param == "gpus"
