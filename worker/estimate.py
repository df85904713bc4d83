"""The time left, from what this attempt has measured of itself. Pure: events in, seconds out."""

from datetime import datetime

from pruning.events import Event, IncrementFinished, PruneFinished, RunStarted, StepFinished


class TimeLeft:
    """Training goes by tokens, all else (calibrating, cutting, evaluating, publishing) by
    increments.

    Both rates are means over this attempt. Before the first increment is whole, its own share of
    the other work so far stands for the rest; before anything was measured the answer is None.
    """

    def __init__(self) -> None:
        self._num_tokens = 0
        self._num_increments = 0
        self._tokens_seen = 0
        self._increment_started_at: datetime | None = None
        self._increment = 0
        self._last_step: StepFinished | None = None
        self._trained_tokens = 0
        self._training_seconds = 0.0
        self._training_here = 0.0
        self._other_seconds: list[float] = []
        self._other_here: float | None = None

    def observe(self, event: Event) -> None:
        """Take note of one event."""
        match event:
            case RunStarted():
                self._num_tokens = event.num_tokens
                self._num_increments = event.num_increments
                self._increment = event.first_increment - 1
                self._increment_started_at = event.at
            case StepFinished():
                self._observe_step(event)
            case PruneFinished():
                self._other_here = self._seconds_here(event.at) - self._training_here
            case IncrementFinished():
                self._other_seconds.append(self._seconds_here(event.at) - self._training_here)
                self._increment = event.increment
                self._increment_started_at = event.at
                self._training_here, self._other_here, self._last_step = 0.0, None, None
            case _:
                pass

    def _observe_step(self, event: StepFinished) -> None:
        before, self._last_step = self._last_step, event
        self._tokens_seen = event.num_tokens
        if before is None:
            return
        seconds = (event.at - before.at).total_seconds()
        self._training_seconds += seconds
        self._training_here += seconds
        self._trained_tokens += event.num_tokens - before.num_tokens

    def _seconds_here(self, now: datetime) -> float:
        start = self._increment_started_at
        return (now - start).total_seconds() if start else 0.0

    def seconds(self) -> float | None:
        """The time left, or None while it is not known."""
        training = self._training_left()
        other = self._other_left()
        return None if training is None or other is None else training + other

    def _training_left(self) -> float | None:
        tokens_left = max(self._num_tokens - self._tokens_seen, 0)
        if tokens_left == 0:
            return 0.0
        if self._trained_tokens == 0:
            return None
        return tokens_left * self._training_seconds / self._trained_tokens

    def _other_left(self) -> float | None:
        whole = self._num_increments - self._increment
        if whole == 0:
            return 0.0
        if self._other_seconds:
            mean = sum(self._other_seconds) / len(self._other_seconds)
            return max(mean * whole - (self._other_here or 0.0), 0.0)
        return self._other_here * (whole - 1) if self._other_here is not None else None
