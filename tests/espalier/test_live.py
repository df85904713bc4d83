"""What the terminal shows of a job."""

import io
from datetime import UTC, datetime

from rich.console import Console

from espalier.live import View, describe, duration, one_line, render
from espalier.resources import Event, Job, Metrics, Progress

NOW = datetime(2026, 1, 1, tzinfo=UTC)
JOB = Job(
    id="job_1",
    status="running",
    phase="training",
    created_at=NOW,
    progress=Progress(
        fraction=0.5,
        increments_planned=3,
        params_now=120_000_000,
        params_target=110_000_000,
        tokens_per_s=450.0,
        estimate_available=True,
        eta_seconds=61,
    ),
)
NOTHING = Metrics(step=(), columns={"loss": ()})
PERPLEXITY = Event(
    seq=1,
    type="eval.completed",
    created_at=NOW,
    data={"metric": "perplexity", "stage": "pruned", "value": 12.345, "increment": 2},
)


def test_the_view_keeps_the_last_loss_and_perplexity() -> None:
    view = View(job=JOB).after(
        JOB, [PERPLEXITY], Metrics(step=(8, 9), columns={"loss": (4.0, 3.5)})
    )
    view = view.after(JOB, [], NOTHING)
    assert (view.step, view.loss, view.perplexity, view.increment) == (9, 3.5, 12.345, 2)


def test_a_line_has_every_figure() -> None:
    view = View(job=JOB).after(JOB, [PERPLEXITY], Metrics(step=(9,), columns={"loss": (3.5,)}))
    assert one_line(view) == (
        "status running  phase training  increment 2/3  parameters 120.00M → 110.00M  "
        "loss 3.500  perplexity 12.35  tokens/s 450  left 1:01"
    )


def test_a_loss_that_is_no_number_does_not_hide_the_last_one() -> None:
    assert Metrics(step=(1, 2), columns={"loss": (3.0, None)}).last("loss") == 3.0


def test_the_live_view_draws_in_a_narrow_terminal() -> None:
    console = Console(file=io.StringIO(), width=60)
    console.print(render(View(job=JOB)))


def test_measurements_and_warnings_get_a_line_of_their_own() -> None:
    warning = Event(
        seq=2, type="warning", level="warning", created_at=NOW, data={"message": "short text"}
    )
    quiet = Event(seq=3, type="phase.changed", created_at=NOW, data={"phase": "training"})
    assert "perplexity 12.35 (pruned)" in str(describe(PERPLEXITY))
    assert "short text" in str(describe(warning))
    assert describe(quiet) is None


def test_durations_read_as_people_write_them() -> None:
    assert [duration(s) for s in (None, 5, 65, 3_725)] == ["-", "0:05", "1:05", "1:02:05"]
