"""Saying from time to time how far a pass over calibration text has come."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from pruning.events import TextMeasured
from pruning.methods.run import Run

SECONDS_BETWEEN_WORDS = 10.0


@contextmanager
def saying_progress(run: Run, increment: int) -> Iterator[None]:
    """Every pass of the model that runs inside is counted, whatever it measures."""
    num_tokens, said_at = 0, time.monotonic()

    def count(_module: nn.Module, args: tuple[Tensor, ...], options: Mapping[str, Any]) -> None:
        nonlocal num_tokens, said_at
        num_tokens += (args[0] if args else options["input_ids"]).numel()
        if time.monotonic() - said_at >= SECONDS_BETWEEN_WORDS:
            said_at = time.monotonic()
            run.emit(TextMeasured(increment=increment, num_tokens=num_tokens))

    handle = run.model.base_model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
