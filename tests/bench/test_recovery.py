"""The bench of recovery runs what its variants are called, and judges what came out."""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import recovery
from bench.recovery_table import Row, bars_of
from tests.pruning.recipes import write_corpus
from tests.pruning.tiny import make_tiny_model, make_tiny_tokenizer

ROW = Row(
    variant="default-3",
    sparsity=0.2,
    tokens=200_000,
    num_parameters=1,
    perplexity=20.0,
    pruned_perplexity=40.0,
    held_out_perplexity=30.0,
    domain_losses={},
    suites={"arc_easy": (0.5, 0.03), "piqa": (0.6, 0.03)},
    phase_seconds={},
    load_average=0.0,
    threads=1,
    losses=[],
    cuts=[],
)


def _main(monkeypatch: pytest.MonkeyPatch, **options: object) -> None:
    named = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    monkeypatch.setattr(sys, "argv", ["bench.recovery", *named])
    recovery.main()


@pytest.mark.parametrize("variant", [*recovery.VARIANTS, "distilled_fast-1", "newton-6-dynamic"])
def test_a_variant_is_the_recipe_that_its_name_says(variant: str, tmp_path: Path) -> None:
    conditions = argparse.Namespace(
        model=tmp_path,
        train=tmp_path,
        sparsity=0.2,
        tokens=200_000,
        calibration_samples=64,
        compile=False,
        work=None,
    )
    recipe = recovery.recipe_of(variant, conditions)
    way, increments, *dynamic = variant.split("-")
    assert recipe.schedule.num_increments == int(increments)
    assert recipe.data.mixture.kind == ("dynamic" if dynamic else "static")
    assert recipe.method == ("adapt_pruner" if way.startswith("official") else "espalier")
    assert (recipe.recovery.distillation is not None) == way.startswith("distilled")
    assert (recipe.compensation == "newton") == (way == "newton")
    assert recipe.recovery.fresh_moments == (way in ("fresh", "official", "official_fast"))
    assert recipe.recovery.learning_rate.peak == {"official": 2e-5, "distilled_fast": 3e-4}.get(
        way, 1e-4
    )


@pytest.mark.parametrize("variant", ["quick-3", "default", "default-many", "default-3-often"])
def test_a_variant_of_no_known_way_is_refused(variant: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"{variant}.*official_fast"):
        recovery._variant(variant)


def test_the_default_is_held_against_the_best_of_the_official_recipes_alone() -> None:
    rows = [
        ROW,
        replace(ROW, variant="sliced-3", perplexity=1.0),
        replace(ROW, variant="official-3", perplexity=30.0),
        replace(ROW, variant="official_fast-6", perplexity=25.0, suites={"arc_easy": (0.57, 0.03)}),
        replace(ROW, variant="official_fast-6", perplexity=1.0, sparsity=0.4),
    ]
    ratio, lost = bars_of(rows, dense=10.0)
    assert (ratio.figure, ratio.met) == (pytest.approx(0.8), True)
    assert "official_fast-6" in ratio.what
    assert (lost.figure, lost.met) == (pytest.approx(0.02), False)


def test_a_million_tokens_are_held_against_the_dense_model() -> None:
    rows = [replace(ROW, tokens=1_000_000, perplexity=12.0)]
    (ratio,) = bars_of(rows, dense=10.0)
    assert (ratio.figure, ratio.met) == (pytest.approx(1.2), False)


def test_variants_are_run_and_kept_in_one_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_dir = tmp_path / "tiny"
    make_tiny_model("llama", max_position_embeddings=2048).save_pretrained(model_dir)
    make_tiny_tokenizer().save_pretrained(model_dir)
    train, text = tmp_path / "train", tmp_path / "text.txt"
    train.mkdir()
    for seed, domain in enumerate(("garden", "wall")):
        write_corpus(train / f"{domain}.jsonl", num_documents=100, seed=seed)
    text.write_text((train / "wall.jsonl").read_text())
    options = {
        "model": model_dir,
        "train": train,
        "evaluation": text,
        "evaluation_tokens": 4096,
        "tokens": 6 * 512,
        "calibration_samples": 4,
        "threads": 1,
        "device": "cpu",
        "results": tmp_path / "results",
    }
    _main(monkeypatch, **options, variants="default-2-dynamic")
    _main(monkeypatch, **options, variants="official-1")
    found: dict[str, Any] = json.loads((tmp_path / "results" / "recovery.json").read_text())
    ours, official = found["rows"]
    assert (ours["variant"], official["variant"]) == ("default-2-dynamic", "official-1")
    assert (len(ours["cuts"]), len(official["cuts"])) == (2, 1)
    assert set(ours["domain_losses"]) == {"garden", "wall"}
    assert found["device"] == "cpu"
    assert [bar["figure"] for bar in found["bars"]] == [
        pytest.approx(ours["perplexity"] / official["perplexity"])
    ]
    assert (tmp_path / "results" / "recovery.png").stat().st_size > 0
