from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import pruning.pipeline as pipeline_module
from pruning.errors import InvalidData, TargetUnreachable
from pruning.events import (
    EvaluationFinished,
    Event,
    IncrementFinished,
    PhaseChanged,
    PruneFinished,
    RunFinished,
    RunStarted,
    RunStopped,
    RunWarning,
    StepFinished,
    TextMeasured,
    TextRead,
    dump_event,
    parse_event,
)
from pruning.manifest import read_manifest
from pruning.methods import saying
from pruning.pipeline import run
from pruning.recipe import Recipe
from tests.pruning.recipes import make_recipe, write_corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus.jsonl")


@pytest.fixture
def recipe(tiny_model_dir: Path, corpus: Path) -> Recipe:
    return make_recipe(tiny_model_dir, corpus)


def events_of(recipe: Recipe, out_dir: Path) -> list[Event]:
    events: list[Event] = []
    run(recipe, out_dir, events.append, device="cpu")
    return events


def only(events: list[Event], kind: type) -> list:
    return [event for event in events if isinstance(event, kind)]


def perplexities(events: list[Event], stage: str) -> list[float]:
    return [
        e.value
        for e in only(events, EvaluationFinished)
        if (e.metric, e.stage) == ("perplexity", stage)
    ]


def training_tensors(increment_dir: Path) -> dict[str, torch.Tensor]:
    state = increment_dir / "training_state"
    return {
        **load_file(state / "weights.safetensors"),
        **load_file(state / "optimizer.safetensors"),
    }


def test_a_run_reaches_its_target_and_training_mends_each_cut(
    recipe: Recipe, tmp_path: Path
) -> None:
    events = events_of(recipe, tmp_path / "out")
    (started,) = only(events, RunStarted)
    (finished,) = only(events, RunFinished)
    assert finished.outcome == "target_reached"
    largest_group = 48 * 3 * 8
    assert 0 <= started.target_num_parameters - finished.num_parameters <= largest_group
    for pruned, recovered in zip(
        perplexities(events, "pruned"), perplexities(events, "recovered"), strict=True
    ):
        assert recovered < pruned


def test_the_events_tell_the_run_in_order(recipe: Recipe, tmp_path: Path) -> None:
    events = events_of(recipe, tmp_path / "out")
    assert all(parse_event(dump_event(event)) == event for event in events)
    assert len(only(events, PruneFinished)) == len(only(events, IncrementFinished)) == 3
    assert [e.step for e in only(events, StepFinished)] == list(range(1, 13))
    phases = [e.phase for e in only(events, PhaseChanged) if e.increment == 2]
    assert phases == [
        "calibrating",
        "pruning",
        "evaluating",
        "training",
        "evaluating",
        "exporting",
    ]
    assert isinstance(events[-1], RunFinished)


@pytest.mark.parametrize("asked_at_step", [0, 1, 4, 7])
def test_a_request_to_stop_is_heeded_at_the_next_step_and_loses_nothing(
    recipe: Recipe, tmp_path: Path, asked_at_step: int
) -> None:
    run(recipe, tmp_path / "whole", lambda _: None, device="cpu")
    seen: list[Event] = []
    out_dir = tmp_path / "out"
    outcome = run(
        recipe,
        out_dir,
        seen.append,
        stop=lambda: len(only(seen, StepFinished)) >= asked_at_step,
        device="cpu",
    )
    assert outcome is None
    assert isinstance(seen[-1], RunStopped)
    done = asked_at_step // 4
    assert seen[-1].increment == done
    assert len(only(seen, StepFinished)) == asked_at_step
    resume_from = {0: None, 1: out_dir / "partial-0001"}.get(
        asked_at_step, out_dir / f"increment-{done:04d}"
    )
    resumed: list[Event] = []
    run(recipe, out_dir, resumed.append, resume_from=resume_from, device="cpu")
    assert len(only(resumed, StepFinished)) == 12 - asked_at_step
    expected = training_tensors(tmp_path / "whole" / "increment-0003")
    found = training_tensors(out_dir / "increment-0003")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_low_rank_factors_are_trained_to_the_end_of_their_increment(
    tiny_model_dir: Path, corpus: Path, tmp_path: Path
) -> None:
    recovery = {"kind": "lora", "sequence_length": 64, "batch_sequences": 4}
    seen: list[Event] = []
    run(
        make_recipe(tiny_model_dir, corpus, recovery=recovery),
        tmp_path,
        seen.append,
        stop=lambda: bool(only(seen, StepFinished)),
        device="cpu",
    )
    assert isinstance(seen[-1], RunStopped)
    assert seen[-1].increment == 1
    assert len(only(seen, StepFinished)) == 4


@pytest.mark.parametrize("killed_at_step", [4, 5, 7, 8, 11])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    recipe: Recipe, tmp_path: Path, killed_at_step: int
) -> None:
    run(recipe, tmp_path / "whole", lambda _: None, device="cpu")
    published: list[str] = []

    def die_at_step(event: Event) -> None:
        if isinstance(event, IncrementFinished):
            published.append(event.directory)
        at_step = isinstance(event, StepFinished) and event.step > killed_at_step
        if at_step or (published and len(published) * 4 == killed_at_step):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "cut", die_at_step, device="cpu")
    last = tmp_path / "cut" / published[-1]
    resumed: list[Event] = []
    run(recipe, tmp_path / "resumed", resumed.append, resume_from=last, device="cpu")
    assert only(resumed, RunStarted)[0].first_increment == len(published) + 1
    expected = training_tensors(tmp_path / "whole" / "increment-0003")
    found = training_tensors(tmp_path / "resumed" / "increment-0003")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def kill_at_step(recipe: Recipe, out_dir: Path, step: int, **options: Path) -> None:
    def die(event: Event) -> None:
        if isinstance(event, StepFinished) and event.step > step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe, out_dir, die, device="cpu", **options)


KEEPING = {
    "sequence_length": 64,
    "batch_sequences": 4,
    "precision": "float32",
    "checkpoint_seconds": 1e-9,
}


@pytest.mark.parametrize(
    ("killed_at_step", "distillation"),
    [(1, None), (3, None), (6, None), (8, None), (11, None), (6, {"teacher": "previous"})],
)
def test_a_run_killed_inside_an_increment_goes_on_from_there_bit_for_bit(
    tiny_model_dir: Path,
    corpus: Path,
    tmp_path: Path,
    killed_at_step: int,
    distillation: dict[str, str] | None,
) -> None:
    recipe = make_recipe(tiny_model_dir, corpus, recovery={**KEEPING, "distillation": distillation})
    run(recipe, tmp_path / "whole", lambda _: None, device="cpu")
    out_dir = tmp_path / "cut"
    kill_at_step(recipe, out_dir, killed_at_step)
    done = killed_at_step // 4
    last = f"increment-{done:04d}" if done else "partial-0001"
    events: list[Event] = []
    run(recipe, out_dir, events.append, resume_from=out_dir / last, device="cpu")
    assert only(events, StepFinished)[0].step == killed_at_step + 1
    expected = training_tensors(tmp_path / "whole" / "increment-0003")
    found = training_tensors(out_dir / "increment-0003")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    whole, resumed = (
        read_manifest(directory / "increment-0003") for directory in (tmp_path / "whole", out_dir)
    )
    assert resumed.measurements == whole.measurements
    assert not list(out_dir.glob("partial-*"))


def test_what_is_kept_of_an_increment_can_be_killed_and_resumed_again(
    tiny_model_dir: Path, corpus: Path, tmp_path: Path
) -> None:
    recipe = make_recipe(tiny_model_dir, corpus, recovery=KEEPING)
    out_dir = tmp_path / "out"
    kill_at_step(recipe, out_dir, 5)
    parent = {"resume_from": out_dir / "increment-0001"}
    kill_at_step(recipe, out_dir, 6, **parent)
    events: list[Event] = []
    run(recipe, out_dir, events.append, device="cpu", **parent)
    assert [e.step for e in only(events, StepFinished)] == list(range(7, 13))
    assert [e.increment for e in only(events, PruneFinished)] == [3]


@pytest.mark.parametrize("harm", ["damaged", "of another recipe", "of another parent"])
def test_a_kept_increment_that_does_not_fit_is_done_again(
    tiny_model_dir: Path, corpus: Path, tmp_path: Path, harm: str
) -> None:
    recipe = make_recipe(tiny_model_dir, corpus, recovery=KEEPING)
    out_dir = tmp_path / "out"
    kill_at_step(recipe, out_dir, 6)
    parent = out_dir / "increment-0001"
    if harm == "damaged":
        (out_dir / "partial-0002" / "model.safetensors").write_bytes(b"")
    elif harm == "of another recipe":
        recipe = recipe.model_copy(update={"seed": recipe.seed + 1})
    else:
        (parent / "manifest.json").write_text((parent / "manifest.json").read_text() + "\n")
    events: list[Event] = []
    run(recipe, out_dir, events.append, resume_from=parent, device="cpu")
    assert only(events, StepFinished)[0].step == 5


def test_a_resumed_manifest_holds_the_whole_history(recipe: Recipe, tmp_path: Path) -> None:
    run(recipe, tmp_path / "out", lambda _: None, device="cpu")
    first = tmp_path / "out" / "increment-0001"
    run(recipe, tmp_path / "resumed", lambda _: None, resume_from=first, device="cpu")
    whole, resumed = (
        read_manifest(tmp_path / name / "increment-0003") for name in ("out", "resumed")
    )
    assert resumed.measurements == whole.measurements
    assert resumed.plan == whole.plan


def test_resuming_on_other_text_is_refused(recipe: Recipe, tmp_path: Path, corpus: Path) -> None:
    run(recipe, tmp_path / "out", lambda _: None, device="cpu")
    write_corpus(corpus, seed=9)
    first = tmp_path / "out" / "increment-0001"
    with pytest.raises(InvalidData, match="text changed"):
        run(recipe, tmp_path / "again", lambda _: None, resume_from=first, device="cpu")


def test_a_family_publishes_every_size(tiny_model_dir: Path, corpus: Path, tmp_path: Path) -> None:
    recipe = make_recipe(
        tiny_model_dir,
        corpus,
        target=["10%", "30%", "20%"],
        recovery={"kind": "none"},
        schedule={"num_increments": 3},
    )
    events = events_of(recipe, tmp_path / "out")
    (started,) = only(events, RunStarted)
    removed = [
        (started.num_parameters - e.num_parameters) / started.num_prunable_parameters
        for e in only(events, IncrementFinished)
    ]
    assert removed == pytest.approx([0.1, 0.2, 0.3], abs=0.03)
    assert not only(events, StepFinished)


def test_the_increment_that_breaks_the_quality_floor_is_not_published(
    tiny_model_dir: Path, corpus: Path, tmp_path: Path
) -> None:
    # What a cut does to random weights is found by measuring; the floor is put just below it.
    options = {
        "method": "adapt_pruner",
        "recovery": {"kind": "none"},
        "schedule": {"num_increments": 4},
        "target": "70%",
    }
    free = events_of(make_recipe(tiny_model_dir, corpus, **options), tmp_path / "free")
    (base,) = perplexities(free, "base")
    ratios = [value / base for value in perplexities(free, "recovered")]
    assert max(ratios) > max(1.0, ratios[0])
    floor = {"max": (max(1.0, ratios[0]) + max(ratios)) / 2}
    events = events_of(
        make_recipe(tiny_model_dir, corpus, quality_floor=floor, **options), tmp_path / "floored"
    )
    (finished,) = only(events, RunFinished)
    assert finished.outcome == "quality_floor"
    first_broken = next(i for i, ratio in enumerate(ratios) if ratio > floor["max"])
    assert [e.increment for e in only(events, IncrementFinished)] == list(
        range(1, first_broken + 1)
    )
    assert finished.increment == first_broken


def test_speed_is_measured_of_the_base_and_the_final_model(
    tiny_model_dir: Path, corpus: Path, tmp_path: Path
) -> None:
    recipe = make_recipe(tiny_model_dir, corpus, evaluation={"context_length": 64})
    events = events_of(recipe, tmp_path / "out")
    speeds = [e for e in only(events, EvaluationFinished) if e.suite == "speed"]
    base = {e.metric: e.protocol for e in speeds if (e.increment, e.stage) == (0, "base")}
    final = {e.metric: e.protocol for e in speeds if (e.increment, e.stage) == (3, "recovered")}
    assert len(speeds) == len(base) + len(final)
    assert base == final
    assert {"prefill_tokens_per_second", "decode_tokens_per_second"} <= set(base)


def test_reading_is_reported_and_not_repeated_by_a_run_that_goes_on(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_module, "_SECONDS_BETWEEN_WORDS", 0.0)
    reports = only(events_of(recipe, tmp_path), TextRead)
    assert [r.num_documents for r in reports] == sorted(r.num_documents for r in reports)
    assert reports[-1].num_tokens > 0
    resumed: list[Event] = []
    head = tmp_path / "increment-0002"
    run(recipe, tmp_path, resumed.append, resume_from=head, device="cpu")
    assert not only(resumed, TextRead)


def test_measuring_for_a_cut_is_reported_pass_by_pass(
    tiny_model_dir: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saying, "SECONDS_BETWEEN_WORDS", 0.0)
    importance = {"calibration": {"num_samples": 8, "sequence_length": 32, "batch_size": 4}}
    recipe = make_recipe(
        tiny_model_dir,
        corpus,
        importance={"kind": "taylor", **importance},
        compensation="least_squares",
        schedule={"num_increments": 2, "num_tokens": 512},
    )
    reports = only(events_of(recipe, tmp_path / "out"), TextMeasured)
    # One pass over the text gives both the scores and what the repair needs.
    assert [(r.increment, r.num_tokens) for r in reports] == [
        (1, 128),
        (1, 256),
        (2, 128),
        (2, 256),
    ]


def test_text_that_runs_out_is_reported(tiny_model_dir: Path, corpus: Path, tmp_path: Path) -> None:
    recipe = make_recipe(
        tiny_model_dir,
        write_corpus(tmp_path / "short.jsonl", num_documents=6),
        schedule={"num_increments": 1, "num_tokens": 12 * 256},
    )
    warnings = only(events_of(recipe, tmp_path / "out"), RunWarning)
    assert warnings[0].code == "domain_exhausted"
    assert warnings[0].message == "domain train is used up; epoch 2 of it begins"


def test_without_a_budget_the_run_is_one_pass_over_the_text(
    tiny_model_dir: Path, corpus: Path, tmp_path: Path
) -> None:
    events = events_of(
        make_recipe(tiny_model_dir, corpus, schedule={"num_increments": 1}), tmp_path / "out"
    )
    (started,) = only(events, RunStarted)
    num_tokens = (tmp_path / "out" / "corpus" / "000.train.bin").stat().st_size // 2
    assert num_tokens - 256 - 64 < started.num_tokens <= num_tokens
    assert not only(events, RunWarning)


def test_a_target_above_the_model_is_refused(
    tiny_model_dir: Path, corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(TargetUnreachable):
        run(
            make_recipe(tiny_model_dir, corpus, target="1M"),
            tmp_path / "out",
            lambda _: None,
            device="cpu",
        )


def test_a_target_below_what_the_constraints_leave_is_refused_before_any_training(
    tiny_model_dir: Path, corpus: Path, tmp_path: Path
) -> None:
    events: list[Event] = []
    recipe = make_recipe(tiny_model_dir, corpus, target=17_000)
    with pytest.raises(TargetUnreachable, match="the constraints leave at least"):
        run(recipe, tmp_path / "out", events.append, device="cpu")
    assert not only(events, StepFinished)


def test_a_first_increment_below_the_quality_floor_is_an_error(
    tiny_model_dir: Path, corpus: Path, tmp_path: Path
) -> None:
    # Training that only harms: a learning rate far too high.
    recipe = make_recipe(
        tiny_model_dir,
        corpus,
        method="adapt_pruner",
        quality_floor={"max": 1.01},
        recovery={
            "sequence_length": 64,
            "batch_sequences": 8,
            "precision": "float32",
            "learning_rate": {"peak": 0.5, "warmup_fraction": 0},
        },
    )
    with pytest.raises(TargetUnreachable, match="the first increment already raises"):
        run(recipe, tmp_path / "out", lambda _: None, device="cpu")


@pytest.mark.parametrize(("num_tokens", "num_steps"), [(40 * 32, 40), (150 * 32, 50)])
def test_a_short_run_takes_small_batches_for_the_sake_of_its_steps(
    tiny_model_dir: Path, corpus: Path, tmp_path: Path, num_tokens: int, num_steps: int
) -> None:
    recipe = make_recipe(
        tiny_model_dir,
        corpus,
        schedule={"num_increments": 1, "num_tokens": num_tokens},
        recovery={"sequence_length": 32, "precision": "float32"},
    )
    events = events_of(recipe, tmp_path / "out")
    steps = only(events, StepFinished)
    assert len(steps) == num_steps
    assert steps[-1].num_tokens == num_tokens
