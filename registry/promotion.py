"""Quality gates: an alias moves to a version only if it is good enough."""

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.errors import GateNotPassed
from registry.models import find_alias, get_version
from registry.tables import Evaluation, RegisteredModel


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What a metric must be: bounds of its own, and how much worse than where the alias stands.

    `max_loss` is relative to the version that the alias names now: 0.05 lets a perplexity rise, or
    an accuracy fall, by a twentieth.
    """

    suite: str
    metric: str
    lower_is_better: bool
    at_least: float | None
    at_most: float | None
    max_loss: float | None


def check_gate(
    session: Session, model: RegisteredModel, alias: str, version: int, gate: Gate
) -> None:
    """Let pass a version that was measured and is good enough.

    Raises:
        NotFound: there is no such version.
        GateNotPassed: it is not, or nobody knows; says by how much.
    """
    name = f"{gate.suite} {gate.metric}"
    value = _value(session, get_version(session, model, version).checkpoint_id, gate)
    if value is None:
        raise GateNotPassed(f"version {version} has no {name}: measure it first")
    if gate.at_least is not None and value < gate.at_least:
        raise GateNotPassed(f"{name} of version {version} is {value:.5g}, below {gate.at_least:g}")
    if gate.at_most is not None and value > gate.at_most:
        raise GateNotPassed(f"{name} of version {version} is {value:.5g}, above {gate.at_most:g}")
    _check_against_current(session, model, alias, value, gate)


def _check_against_current(
    session: Session, model: RegisteredModel, alias: str, value: float, gate: Gate
) -> None:
    standing = find_alias(session, model, alias)
    if standing is None or gate.max_loss is None:
        return
    current = _value(session, get_version(session, model, standing.version).checkpoint_id, gate)
    if current is None:
        return
    loss = (value - current if gate.lower_is_better else current - value) / abs(current or 1.0)
    if loss > gate.max_loss:
        raise GateNotPassed(
            f"{gate.suite} {gate.metric} is {value:.5g}, {loss:.1%} worse than version "
            f"{standing.version}; {gate.max_loss:.1%} is allowed"
        )


def _value(session: Session, checkpoint_id: str, gate: Gate) -> float | None:
    query = select(Evaluation.value).where(
        Evaluation.checkpoint_id == checkpoint_id,
        Evaluation.suite == gate.suite,
        Evaluation.metric == gate.metric,
        Evaluation.stage == "recovered",
    )
    return session.scalars(query).first()
