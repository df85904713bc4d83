"""The text that a recipe trains on and measures with."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pruning.recipe_parts.part import Part

MAX_INLINE_CHARACTERS = 65_536
_MESSAGES = (
    "Column or key with a list of messages, instead of a text: the model's chat template renders "
    "them, and only what the assistant says is learned."
)
_FILE_ID = re.compile(r"file_[0-9a-f]{32}")
_CHECKPOINT_ID = re.compile(r"ckpt_[0-9a-f]{32}")


class HubData(Part):
    """A dataset repository on a hub, streamed."""

    kind: Literal["hub"] = "hub"
    id: str = Field(
        pattern=r"^[\w.-]+(/[\w.-]+)?$", max_length=200, description="Repository, `org/name`."
    )
    config: str | None = Field(None, max_length=200, description="The dataset's configuration.")
    split: str = Field("train", max_length=200, description="Which split to read.")
    revision: str = Field(
        "main", pattern=r"^[\w./-]+$", max_length=200, description="Branch, tag or commit."
    )
    text_field: str = Field("text", max_length=200, description="Column with the text.")
    messages_field: str | None = Field(None, max_length=200, description=_MESSAGES)
    credential: str | None = Field(
        None,
        pattern=r"^cred_[0-9a-f]{32}$",
        description="Id of a stored credential for gated data; a recipe goes by one.",
    )


class PathData(Part):
    """A text file, or a directory in which each file is a domain, on the worker's own disk."""

    kind: Literal["path"] = "path"
    path: str = Field(min_length=1, max_length=4096, description="File or directory, absolute.")
    text_field: str = Field("text", max_length=200, description="Column or key with the text.")
    messages_field: str | None = Field(None, max_length=200, description=_MESSAGES)


class InlineData(Part):
    """A few documents in the request itself."""

    kind: Literal["inline"] = "inline"
    documents: tuple[str, ...] = Field(
        min_length=1, description="The texts, at most 65,536 characters together."
    )

    @field_validator("documents")
    @classmethod
    def _bounded(cls, documents: tuple[str, ...]) -> tuple[str, ...]:
        if sum(map(len, documents)) > MAX_INLINE_CHARACTERS:
            raise ValueError(f"inline text is limited to {MAX_INLINE_CHARACTERS} characters")
        return documents


class UploadData(Part):
    """A file sent to the service before; the worker puts it beside the run."""

    kind: Literal["upload"] = "upload"
    file: str = Field(pattern=r"^file_[0-9a-f]{32}$", description="Id of the file.")
    text_field: str = Field("text", max_length=200, description="Column or key with the text.")
    messages_field: str | None = Field(None, max_length=200, description=_MESSAGES)


class CheckpointData(Part):
    """The text that a checkpoint was made with: the service puts the data of its job here."""

    kind: Literal["checkpoint"] = "checkpoint"
    id: str = Field(pattern=r"^ckpt_[0-9a-f]{32}$", description="Id of the checkpoint.")


DataSource = Annotated[
    HubData | PathData | InlineData | UploadData | CheckpointData, Field(discriminator="kind")
]


def parse_data_source(text: str) -> dict[str, Any]:
    """`org/name`, `org/name:config`, `file_…`, `ckpt_…` or an absolute path as a long form."""
    if text.startswith("/"):
        return {"kind": "path", "path": text}
    if _FILE_ID.fullmatch(text):
        return {"kind": "upload", "file": text}
    if _CHECKPOINT_ID.fullmatch(text):
        return {"kind": "checkpoint", "id": text}
    repository, _, config = text.partition(":")
    return {"kind": "hub", "id": repository, **({"config": config} if config else {})}


class Domain(Part):
    """A named part of the corpus. Weights are relative; absent means by the text it holds."""

    name: str = Field(pattern=r"^[\w.-]{1,64}$", description="A name; distinct within the corpus.")
    source: DataSource
    weight: float | None = Field(
        None, gt=0, description="Relative weight. Default: by the text it holds."
    )
    max_documents: int | None = Field(None, gt=0, description="Read no more than so many.")
    max_tokens: int | None = Field(None, gt=0, description="Train on no more than so many.")
    license: str | None = Field(
        None, max_length=200, description="Noted in the model card, as you write it."
    )

    @field_validator("source", mode="before")
    @classmethod
    def _simple_source(cls, value: object) -> object:
        return parse_data_source(value) if isinstance(value, str) else value


class MeasuredModel(Part):
    """Losses of a model of the same kind, of some other size."""

    num_parameters: int = Field(gt=0, description="Its size.")
    losses: dict[str, float] = Field(
        min_length=1, description="What it reached, by domain, in nats per token."
    )


class Mixture(Part):
    """How the domains are mixed while training.

    `static` keeps the domains' weights. `dynamic` (Sheared-LLaMA's dynamic batch loading) gives
    more to the domains whose held-out loss is furthest above its reference: after each cut, and
    again every `update_steps` optimizer steps.
    """

    kind: Literal["static", "dynamic"] = "static"
    references: dict[str, float] | None = Field(
        None, description="Loss to reach, by domain, in nats per token. Default: the base model's."
    )
    measured_models: tuple[MeasuredModel, ...] | None = Field(
        None,
        min_length=2,
        max_length=64,
        description="Fit the loss to reach to what models of other sizes reached.",
    )
    step_size: float = Field(
        1.0, gt=0, le=100, description="Of the exponential update of the weights."
    )
    smoothing: float = Field(1e-4, ge=0, lt=1, description="Share spread evenly over all domains.")
    max_change: float = Field(0.1, gt=0, le=1, description="Of any one weight, in one update.")
    update_steps: int = Field(50, gt=0, description="Optimizer steps between two updates.")

    @model_validator(mode="after")
    def _one_kind_of_reference(self) -> Self:
        if self.measured_models is None:
            return self
        if self.references is not None:
            raise ValueError("give references or measured_models, not both")
        if len({model.num_parameters for model in self.measured_models}) < 2:
            raise ValueError("measured_models need two sizes at least, to tell what size does")
        if len({frozenset(model.losses) for model in self.measured_models}) > 1:
            raise ValueError("measured_models must name the same domains")
        return self


Deduplication = Literal["none", "exact", "near"]


class Data(Part):
    """The corpus: domains to train on, and text held out to evaluate on.

    Without `evaluation`, a slice of each domain is held out by the hash of its documents, so the
    same document is held out whatever its position and never trained on.
    """

    train: tuple[Domain, ...] = Field(min_length=1, description="Domains to train on.")
    evaluation: DataSource | None = Field(
        None, description="Text held out; by default a part of each domain."
    )
    held_out_fraction: float = Field(
        0.05, gt=0, le=0.5, description="Share of the documents held out."
    )
    max_held_out_tokens: int = Field(16_384, gt=0, description="Held-out text is cut there.")
    mixture: Mixture = Field(Mixture(), description="How the domains are mixed.")
    deduplicate: Deduplication = Field(
        "none", description="Leave out documents seen before in any domain, or nearly so."
    )
    decontaminate: bool = Field(
        False,
        description="Leave out documents that share thirteen words in a row with what "
        "`evaluation.suites` or `data.evaluation` will ask.",
    )

    @field_validator("train", mode="before")
    @classmethod
    def _simple_train(cls, value: object) -> object:
        if isinstance(value, str) or (isinstance(value, Mapping) and "kind" in value):
            return ({"name": "train", "source": value},)
        return value

    @field_validator("evaluation", mode="before")
    @classmethod
    def _simple_evaluation(cls, value: object) -> object:
        return parse_data_source(value) if isinstance(value, str) else value

    @field_validator("train")
    @classmethod
    def _distinct_names(cls, train: tuple[Domain, ...]) -> tuple[Domain, ...]:
        names = [domain.name for domain in train]
        if len(set(names)) != len(names):
            raise ValueError("domain names must be distinct")
        return train

    @model_validator(mode="after")
    def _own_text_goes_alone(self) -> Self:
        sources = [*(domain.source for domain in self.train), self.evaluation]
        if len(self.train) == 1 and self.evaluation is None:
            return self
        if any(isinstance(source, CheckpointData) for source in sources):
            raise ValueError(
                "the text of a checkpoint comes with what was held out of it: give it as the only "
                "domain, without data.evaluation"
            )
        return self

    @model_validator(mode="after")
    def _held_out_by_domain(self) -> Self:
        if self.mixture.kind == "dynamic" and self.evaluation is not None:
            raise ValueError(
                "a dynamic mixture measures text held out of each domain: leave out data.evaluation"
            )
        return self
