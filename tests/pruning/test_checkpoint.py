from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pruning.checkpoint import load_checkpoint, restore_optimizer
from pruning.errors import CheckpointCorrupt
from pruning.events import Event, IncrementFinished
from pruning.manifest import read_manifest
from pruning.models.geometry import count_parameters, layer_widths
from pruning.pipeline import run
from pruning.recipe import Recipe
from pruning.training.optimizer import build_optimizer
from tests.pruning.recipes import make_recipe, write_corpus
from tests.pruning.tiny import make_tiny_model, make_tiny_tokenizer, random_ids


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    directory = tmp_path_factory.mktemp("inputs")
    make_tiny_model(attention_bias=False, mlp_bias=False).save_pretrained(directory / "model")
    make_tiny_tokenizer().save_pretrained(directory / "model")
    return make_recipe(directory / "model", write_corpus(directory / "corpus.jsonl"))


@pytest.fixture(scope="module")
def events() -> list[Event]:
    return []


@pytest.fixture(scope="module")
def finished(recipe: Recipe, events: list[Event], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out_dir = tmp_path_factory.mktemp("out")
    run(recipe, out_dir, events.append, device="cpu")
    return out_dir


def test_the_manifest_describes_and_verifies_every_file(finished: Path) -> None:
    for number in (1, 2, 3):
        directory = finished / f"increment-{number:04d}"
        manifest = read_manifest(directory)
        manifest.verify(directory)
        on_disk = {p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()}
        assert set(manifest.files) == on_disk - {"manifest.json"}
        assert manifest.increment == number
        assert manifest.final == (number == 3)
        assert manifest.num_bytes == (directory / "model.safetensors").stat().st_size


def test_a_checkpoint_opens_with_plain_transformers(finished: Path) -> None:
    directory = finished / "increment-0003"
    model = AutoModelForCausalLM.from_pretrained(directory)
    manifest = read_manifest(directory)
    assert model.dtype == torch.bfloat16
    assert count_parameters(model) == manifest.num_parameters
    assert layer_widths(model) == manifest.widths
    assert model(random_ids()).logits.isfinite().all()


def test_tied_weights_are_stored_once(finished: Path) -> None:
    manifest = read_manifest(finished / "increment-0003")
    header_bytes = 8192
    assert manifest.num_bytes < 2 * manifest.num_parameters + header_bytes


def test_each_checkpoint_names_the_one_before_it(finished: Path, events: list[Event]) -> None:
    published = [event for event in events if isinstance(event, IncrementFinished)]
    parents = [
        read_manifest(finished / event.directory).lineage.parent_manifest_sha256
        for event in published
    ]
    assert parents == [None, *(event.manifest_sha256 for event in published[:-1])]


def test_the_published_weights_are_the_master_weights_rounded(finished: Path) -> None:
    directory = finished / "increment-0002"
    master = load_checkpoint(directory).model.state_dict()
    published = AutoModelForCausalLM.from_pretrained(directory).state_dict()
    assert all(torch.equal(published[name], master[name].bfloat16()) for name in published)


def test_moments_return_to_their_parameters(finished: Path) -> None:
    opened = load_checkpoint(finished / "increment-0002")
    optimizer = build_optimizer(opened.model, opened.manifest.recipe.recovery)
    restore_optimizer(optimizer, opened.model, opened.optimizer_tensors)
    for name, parameter in opened.model.named_parameters():
        state = optimizer.state[parameter]
        assert torch.equal(state["exp_avg"], opened.optimizer_tensors[f"exp_avg.{name}"])
        assert state["exp_avg_sq"].shape == parameter.shape
        assert state["step"] == 8


def test_a_changed_byte_is_noticed(recipe: Recipe, finished: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in (finished / "increment-0001").rglob("*"):
        if path.is_file():
            copy = damaged / path.relative_to(finished / "increment-0001")
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())
    weights = damaged / "training_state" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointCorrupt, match=r"weights\.safetensors: sha256"):
        run(recipe, tmp_path / "out", lambda _: None, resume_from=damaged, device="cpu")


def test_nothing_unfinished_is_left_beside_the_checkpoints(finished: Path) -> None:
    assert sorted(path.name for path in finished.iterdir()) == [
        "corpus",
        "increment-0001",
        "increment-0002",
        "increment-0003",
    ]
