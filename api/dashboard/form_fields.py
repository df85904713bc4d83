"""The fields of the form that makes a job, read from the recipe: choices, default, help. Pure."""

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from api.schemas.jobs import JobCreate

METHODS: Mapping[str, str] = {
    "espalier": "Least loss for the size: second-order costs, repair at each cut, then training.",
    "adapt_pruner": "Many small cuts with training between them.",
    "minitron": "One cut to equal layers, then distillation: opens in every engine.",
    "llm_pruner": "One cut by gradients, then training.",
    "flap": "One cut without training, in minutes.",
    "shortgpt": "Takes out whole layers, without training.",
    "slicegpt": "Narrows the residual stream by rotating it, without training.",
    "sheared_llama": "Learns what to cut while training, towards equal layers; then trains on.",
    "efficientllm": "A little at every second step, towards equal layers; then trains on.",
    "saap": "One cut by fused scores, then low-rank training.",
}
_GROUPS: Sequence[tuple[str, Sequence[tuple[str, str]]]] = (
    (
        "Cuts",
        (
            ("schedule.num_increments", "Increments"),
            ("importance.kind", "Importance"),
            ("allocation.kind", "Allocation"),
            ("allocation.layout", "Layout"),
            ("allocation.constraints.width_multiple", "Width multiple"),
            ("compensation", "Compensation"),
            ("axes", "What may be cut"),
        ),
    ),
    (
        "Recovery training",
        (
            ("recovery.kind", "Trains"),
            ("schedule.num_tokens", "Training tokens"),
            ("schedule.token_share", "Token share"),
            ("recovery.learning_rate.peak", "Peak learning rate"),
            ("recovery.sequence_length", "Sequence length"),
            ("recovery.batch_sequences", "Sequences per step"),
            ("recovery.distillation.teacher", "Distilled from"),
        ),
    ),
    (
        "Evaluation",
        (
            ("data.evaluation", "Evaluation text"),
            ("data.held_out_fraction", "Held-out share"),
            ("evaluation.context_length", "Context length"),
            ("quality_floor.max", "Stop above this ratio of perplexities"),
        ),
    ),
    (
        "Result",
        (
            ("output.dtype", "Stored as"),
            ("output.keep", "Checkpoints kept"),
            ("output.exports", "Exports"),
            ("serve_with", "Must be served by"),
            ("tensor_parallel", "Tensor parallel"),
        ),
    ),
    (
        "Job",
        (
            ("priority", "Priority"),
            ("limits.max_runtime_s", "Longest time, seconds"),
            ("limits.max_attempts", "Attempts"),
            ("seed", "Seed"),
        ),
    ),
)
TARGET_UNITS: Mapping[str, str] = {
    "parameters": "parameters, such as 110M",
    "sparsity": "% of the layers removed",
    "size_bytes": "MB on disk",
}
PLAIN = ("name", "model", "target", "target_unit", "data", "data_text", "method", "extra")

Kind = Literal["choice", "choices", "number", "text"]


@dataclass(frozen=True)
class FormField:
    """One field: `name` is its path in the request."""

    name: str
    label: str
    kind: Kind
    choices: tuple[str, ...]
    help: str
    default: str

    @property
    def id(self) -> str:
        """What its label and its messages refer to."""
        return "f-" + self.name.replace(".", "-")


@dataclass(frozen=True)
class FormGroup:
    """Fields under one heading."""

    title: str
    fields: tuple[FormField, ...]


def build_groups() -> tuple[FormGroup, ...]:
    """The folded part of the form."""
    return tuple(
        FormGroup(title, tuple(_describe(name, label) for name, label in fields))
        for title, fields in _GROUPS
    )


def _describe(name: str, label: str) -> FormField:
    info = _info(name)
    choices = tuple(dict.fromkeys(_literals(info.annotation)))
    several = any(get_origin(part) is tuple for part in (info.annotation,))
    if choices:
        kind: Kind = "choices" if several else "choice"
    else:
        kind = "number" if {int, float} & set(_parts(info.annotation)) else "text"
    given = info.default
    plain = isinstance(given, str | int | float) and not isinstance(given, bool)
    return FormField(
        name, label, kind, choices, info.description or "", str(given) if plain else ""
    )


def _info(name: str) -> FieldInfo:
    *path, last = name.split(".")
    model: type[BaseModel] = JobCreate
    for part in path:
        model = next(
            found
            for found in _parts(model.model_fields[part].annotation)
            if isinstance(found, type) and issubclass(found, BaseModel)
        )
    return model.model_fields[last]


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in get_args(annotation):
        if get_origin(annotation) is not Literal:
            yield from _parts(part)


def _literals(annotation: Any) -> Iterator[str]:
    if get_origin(annotation) is Literal:
        yield from (str(value) for value in get_args(annotation))
    elif get_origin(annotation) in (tuple, Union, types.UnionType):
        for part in get_args(annotation):
            yield from _literals(part)


GROUPS = build_groups()
ADVANCED: Mapping[str, FormField] = {f.name: f for group in GROUPS for f in group.fields}
