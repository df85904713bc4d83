"""Events in a few words."""

from collections.abc import Callable, Mapping
from typing import Any

from api.dashboard.units import count, decimal, duration, percent, size
from api.schemas.progress import EventRead

Data = Mapping[str, Any]


def sentence(event: EventRead) -> str:
    """What an event says, or nothing where its type says it all."""
    words = _WORDS.get(event.type, _reason)
    return words(event.data)


def _reason(data: Data) -> str:
    return str(data.get("reason") or data.get("message") or "")


def _phase(data: Data) -> str:
    increment = data.get("increment")
    return f"{data.get('phase', '')}{_cut(increment)}"


def _cut(increment: object) -> str:
    return f", cut {increment}" if increment else ""


def _validated(data: Data) -> str:
    start, target = data.get("num_parameters"), data.get("target_num_parameters")
    return (
        f"{count(start)} → {count(target)} parameters in {data.get('num_increments', '?')} cuts, "
        f"{count(data.get('num_tokens'))} training tokens"
    )


def _pruned(data: Data) -> str:
    before, after = data.get("num_parameters_before"), data.get("num_parameters")
    return f"{count(before)} → {count(after)} parameters{_cut(data.get('increment'))}"


def _evaluated(data: Data) -> str:
    metric = str(data.get("metric", "")).replace("_", " ")
    stage = f"{data.get('stage', '')}{_cut(data.get('increment'))}"
    return f"{metric} {decimal(data.get('value'))}, {stage}"


def _published(data: Data) -> str:
    last = ", the last" if data.get("final") else ""
    return (
        f"cut {data.get('increment')}: {count(data.get('num_parameters'))} parameters, "
        f"{size(data.get('num_bytes'))}{last}"
    )


def _retrying(data: Data) -> str:
    delay = data.get("delay_seconds")
    wait = f"; again in {duration(delay)}" if delay else ""
    return f"{data.get('cause', '')}: {data.get('message', '')}{wait}"


def _succeeded(data: Data) -> str:
    return str(data.get("outcome") or "").replace("_", " ")


def _failed(data: Data) -> str:
    return ": ".join(part for part in (str(data.get("code") or ""), _reason(data)) if part)


def _mixed(data: Data) -> str:
    weights = data.get("weights") or {}
    return ", ".join(f"{name} {percent(share)}" for name, share in weights.items())


def _text_read(data: Data) -> str:
    return f"{count(data.get('num_tokens'))} tokens of {count(data.get('num_documents'))} documents"


_WORDS: Mapping[str, Callable[[Data], str]] = {
    "job.created": lambda data: str(data.get("name") or ""),
    "job.validated": _validated,
    "job.started": lambda data: f"attempt {data['attempt']}" if data.get("attempt") else "",
    "phase.changed": _phase,
    "text.read": _text_read,
    "text.measured": lambda data: f"{count(data.get('num_tokens'))} tokens",
    "prune.step": _pruned,
    "mixture.changed": _mixed,
    "eval.completed": _evaluated,
    "checkpoint.created": _published,
    "job.retrying": _retrying,
    "job.succeeded": _succeeded,
    "job.failed": _failed,
}
