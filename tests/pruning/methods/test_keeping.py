from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

import pruning.methods.keeping as keeping_module
from pruning.events import Event, StepFinished
from pruning.pipeline import run
from pruning.recipe import Recipe
from pruning.training.memory import free_main_memory
from tests.pruning.recipes import make_recipe, write_corpus

KEEPING = {
    "sequence_length": 64,
    "batch_sequences": 4,
    "precision": "float32",
    "checkpoint_seconds": 1e-9,
}


@pytest.fixture
def recipe(tiny_model_dir: Path, tmp_path: Path) -> Recipe:
    corpus = write_corpus(tmp_path / "text.jsonl")
    return make_recipe(tiny_model_dir, corpus, recovery=KEEPING)


def kept_weights(recipe: Recipe, out_dir: Path) -> dict[str, torch.Tensor]:
    """What is kept of a run that is killed in its third step."""

    def die(event: Event) -> None:
        if isinstance(event, StepFinished) and event.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe, out_dir, die, device="cpu")
    state = out_dir / "partial-0001" / "training_state"
    return load_file(state / "weights.safetensors") | load_file(state / "optimizer.safetensors")


def test_a_state_kept_beside_training_is_that_of_its_step(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = kept_weights(recipe, tmp_path / "beside")
    monkeypatch.setattr(keeping_module, "_ROOM", float("inf"))
    between = kept_weights(recipe, tmp_path / "between")
    assert beside.keys() == between.keys()
    assert all(torch.equal(beside[name], between[name]) for name in beside)


def test_a_state_that_cannot_be_written_ends_the_run(recipe: Recipe, tmp_path: Path) -> None:
    out_dir = tmp_path / "out"
    out_dir.mkdir()
    (out_dir / ".partial-0001").write_text("in the way")
    with pytest.raises(OSError, match="partial-0001"):
        run(recipe, out_dir, lambda _: None, device="cpu")


def test_free_memory_is_less_than_the_machine_has() -> None:
    assert 0 < free_main_memory() < psutil.virtual_memory().total
