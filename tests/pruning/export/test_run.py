"""Exports and the model card as part of a run."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from pruning.__main__ import main
from pruning.errors import ExportRefused
from pruning.events import EvaluationFinished, Event, RunWarning
from pruning.manifest import read_manifest
from pruning.pipeline import run
from pruning.recipe import Recipe
from tests.pruning.export.tiny import save_tiny_checkpoint
from tests.pruning.recipes import make_recipe, write_corpus
from tests.pruning.tiny import make_tiny_model, make_tiny_tokenizer


@dataclasses.dataclass(frozen=True)
class Finished:
    checkpoint: Path
    events: list[Event]


def recipe_for(model_dir: Path, tmp_path: Path, **changes: Any) -> Recipe:
    return make_recipe(
        model_dir,
        write_corpus(tmp_path / "corpus.jsonl"),
        schedule={"num_increments": 1, "num_tokens": 4 * 256},
        **changes,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    tmp_path = tmp_path_factory.mktemp("finished")
    make_tiny_model().save_pretrained(tmp_path / "model")
    make_tiny_tokenizer().save_pretrained(tmp_path / "model")
    recipe = recipe_for(
        tmp_path / "model",
        tmp_path,
        output={"exports": ["gguf:f16", "remote_code"]},
        evaluation={"context_length": 64, "speed": True},
        allocation={
            "layout": "uniform",
            "constraints": {"width_multiple": 8, "min_intermediate_size": 8},
        },
    )
    events: list[Event] = []
    run(recipe, tmp_path / "out", events.append, device="cpu")
    return Finished(tmp_path / "out" / "increment-0001", events)


def test_the_final_checkpoint_lists_its_exports_and_its_card(finished: Finished) -> None:
    manifest = read_manifest(finished.checkpoint)
    manifest.verify(finished.checkpoint)
    assert {
        "README.md",
        "exports/gguf-f16/model.gguf",
        "exports/gguf-f16/parity.json",
    } <= set(manifest.files)
    # Equal layers need no code: refused with a warning, and the run goes on.
    refused = [e for e in finished.events if isinstance(e, RunWarning)]
    assert [event.code for event in refused] == ["export_refused"]


def test_the_card_tells_lineage_evaluation_and_proof(finished: Finished) -> None:
    card = (finished.checkpoint / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    manifest = read_manifest(finished.checkpoint)
    assert f"{manifest.num_parameters:,} of {manifest.base_num_parameters:,}" in card
    (base, *_) = manifest.measurements
    assert f"| base | perplexity | perplexity | {base.value:,.4g} | {base.stderr:.3g} |" in card
    assert "| gguf:f16 | llama.cpp (xllamacpp" in card
    assert "llama-server -m exports/gguf-f16/model.gguf" in card


def test_the_speed_beside_the_base_model_is_reported_and_shown(finished: Finished) -> None:
    measured = {
        (event.stage, event.metric)
        for event in finished.events
        if isinstance(event, EvaluationFinished) and event.suite == "speed:gguf:f16"
    }
    metrics = ("decode_tokens_per_second", "first_token_seconds", "memory_bytes")
    assert measured == {(stage, m) for stage in ("base", "recovered") for m in metrics}
    card = (finished.checkpoint / "README.md").read_text()
    assert "| gguf:f16 | base |" in card
    assert "| gguf:f16 | pruned |" in card
    assert (finished.checkpoint / "exports" / "gguf-f16" / "speed.json").is_file()


def test_the_licence_is_the_base_models(tiny_model_dir: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model_dir, base)
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    (base / "LICENSE").write_text("Do as you like.")
    run(recipe_for(base, tmp_path), tmp_path / "out", [].append, device="cpu")
    checkpoint = tmp_path / "out" / "increment-0001"
    card = (checkpoint / "README.md").read_text()
    assert "\nlicense: apache-2.0\n" in card
    assert "`apache-2.0`: [LICENSE](LICENSE)" in card
    assert (checkpoint / "LICENSE").read_text() == "Do as you like."
    assert "LICENSE" in read_manifest(checkpoint).files


def test_what_cannot_be_exported_is_refused_before_training(tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "model", "granite", evenly=True)
    recipe = recipe_for(checkpoint, tmp_path, output={"exports": ["gguf:f16"]})
    with pytest.raises(ExportRefused, match="no writer for model_type 'granite'"):
        run(recipe, tmp_path / "out", [].append, device="cpu")


def test_the_command_exports_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "model")
    assert main(["export", str(checkpoint), "--to", "gguf:f32"]) == 0
    assert (checkpoint / "exports" / "gguf-f32" / "parity.json").is_file()
    assert "llama.cpp" in capsys.readouterr().out
