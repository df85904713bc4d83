"""The recipe: the complete, frozen description of a run.

The API validates a request with this class, the registry stores it, the library consumes it: nobody
converts it, and a run reads no other setting. Simple forms are accepted where a person would type
them (`"model": "org/name@revision"`, `"target": "100M"`, `"data": "org/name:config"`); the stored
recipe is always the long form with every default filled. Torch-free.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from pruning import serving
from pruning.recipe_parts.calibration import CalibrationSize
from pruning.recipe_parts.data import Data, DataSource
from pruning.recipe_parts.evaluation import Evaluation, QualityFloor
from pruning.recipe_parts.method import (
    DEPTH_AXES,
    HIDDEN_IMPORTANCE,
    MASKED_AXES,
    WITH_BIASES,
    WITH_MOMENTS,
    Allocation,
    Axis,
    Compensation,
    Importance,
    MethodName,
    Schedule,
)
from pruning.recipe_parts.model import ModelSource, parse_model
from pruning.recipe_parts.output import Output, ServingEngine
from pruning.recipe_parts.part import Part
from pruning.recipe_parts.preset import lay_over_preset
from pruning.recipe_parts.recovery import Recovery
from pruning.recipe_parts.target import Target, long_target


class Recipe(Part):
    """A whole run: which model, to which size, on which text, how."""

    model: ModelSource = Field(description="What to prune.")
    target: Target | tuple[Target, ...] = Field(
        description="The size to reach, or several on the way."
    )
    data: Data = Field(description="The text to train on and to measure with.")
    method: MethodName = Field("espalier", description="A preset of the fields below.")
    axes: tuple[Axis, ...] = Field(
        ("intermediate", "kv_group"), min_length=1, description="What may be cut."
    )
    importance: Importance = Field(Importance(), description="How groups are scored.")
    allocation: Allocation = Field(Allocation(), description="How sparsity is spread.")
    compensation: Compensation = Field(
        "none", description="Repair of what stays, without training."
    )
    schedule: Schedule = Field(Schedule(), description="When the cuts come.")
    recovery: Recovery = Field(Recovery(), description="Training after each cut.")
    evaluation: Evaluation = Field(Evaluation(), description="What is measured.")
    quality_floor: QualityFloor | None = Field(
        None, description="Stop before the increment that breaks it."
    )
    output: Output = Field(Output(), description="How checkpoints are stored.")
    serve_with: tuple[ServingEngine, ...] = Field(
        (), description="Engines that must be able to run the result."
    )
    tensor_parallel: int = Field(1, ge=1, le=64, description="Devices each layer is split over.")
    gpus: int | None = Field(
        None,
        ge=1,
        le=64,
        description="GPUs of one machine that the run is spread over. Default: one device.",
    )
    processes: int = Field(1, ge=1, le=64, description="CPU processes that the run is spread over.")
    seed: int = Field(42, ge=0, lt=2**31, description="Of everything random.")

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, value: object) -> object:
        """Lay the request over the named method's fragment, so that what was written wins."""
        if not isinstance(value, Mapping):
            return value
        return serving.fill(lay_over_preset(value))

    @model_validator(mode="after")
    def _servable(self) -> Self:
        serving.check(
            self.serve_with,
            self.output.exports,
            axes=self.axes,
            layout=self.allocation.layout,
            rotation=self.importance.rotation,
            tensor_parallel=self.tensor_parallel,
            constraints=self.allocation.constraints,
        )
        return self

    @model_validator(mode="after")
    def _conversations_stay_whole(self) -> Self:
        chats = [name for name, source in self.sources() if getattr(source, "messages_field", None)]
        if chats and self.recovery.separate_documents:
            raise ValueError(
                f"{chats[0]} has conversations, in which every turn may end as documents do: "
                "recovery.separate_documents must be false"
            )
        if suites := [name for name in chats if name.startswith("evaluation")]:
            raise ValueError(f"{suites[0]} takes text, not messages_field")
        return self

    @model_validator(mode="after")
    def _one_credential(self) -> Self:
        if len(found := {credential for _, credential in self._credentials()}) > 1:
            raise ValueError(
                f"a run goes by one credential, got {' and '.join(sorted(found))}: store a token "
                "that opens the model and all data"
            )
        return self

    @property
    def credential(self) -> tuple[str, str] | None:
        """The stored credential that opens its model and texts, after a field that names it."""
        return next(self._credentials(), None)

    def _credentials(self) -> Iterator[tuple[str, str]]:
        for name, source in (("model", self.model), *self.sources()):
            if (credential := getattr(source, "credential", None)) is not None:
                yield f"{name}.credential", credential

    @model_validator(mode="after")
    def _spread_over_one_kind(self) -> Self:
        if self.gpus is not None and self.processes > 1:
            raise ValueError("give gpus or processes, not both: a run is spread over one of them")
        return self

    @model_validator(mode="after")
    def _layers_go_alone(self) -> Self:
        """Widths are allotted among layers that stay: a second run thins out a shallower model."""
        blocks = {"attention_block", "mlp_block"}
        if not set(DEPTH_AXES) & set(self.axes):
            return self
        if set(self.axes) != {"layer"} and not set(self.axes) <= blocks:
            raise ValueError(
                "axis 'layer' goes alone, 'attention_block' and 'mlp_block' with each other: "
                "narrow what stays in a second run"
            )
        if self.compensation != "none":
            raise ValueError("nothing makes good for a whole block: compensation must be 'none'")
        return self

    @property
    def narrows_stream(self) -> bool:
        """Whether the hidden size shrinks."""
        shapes = (target.shape for target in self.targets)
        return "hidden" in self.axes or any(s is not None and s.hidden_size for s in shapes)

    @model_validator(mode="after")
    def _hidden_is_measured(self) -> Self:
        if self.narrows_stream and self.importance.kind not in HIDDEN_IMPORTANCE:
            raise ValueError(
                f"hidden channels have no {self.importance.kind} importance: "
                f"importance.kind must be one of {', '.join(HIDDEN_IMPORTANCE)}"
            )
        return self

    @model_validator(mode="after")
    def _energy_is_of_the_stream(self) -> Self:
        if self.importance.kind == "pca_energy" and set(self.axes) != {"hidden"}:
            raise ValueError(
                "importance 'pca_energy' is of hidden channels: axes must be ['hidden']"
            )
        shaped = any(target.shape is not None for target in self.targets)
        if self.importance.kind == "pca_energy" and shaped:
            raise ValueError("importance 'pca_energy' goes with a size, not with a target shape")
        if self.importance.rotation == "per_block" and (
            self.importance.kind != "pca_energy" or self.schedule.num_increments != 1
        ):
            raise ValueError(
                "rotation 'per_block' is of 'pca_energy' and cuts once: num_increments must be 1"
            )
        return self

    @model_validator(mode="after")
    def _curvature_is_measured(self) -> Self:
        if self.compensation == "newton" and self.importance.kind != "fisher":
            raise ValueError("compensation 'newton' needs importance.kind 'fisher'")
        return self

    @model_validator(mode="after")
    def _experts_or_their_channels(self) -> Self:
        if {"expert", "intermediate"} <= set(self.axes):
            raise ValueError("axes 'expert' and 'intermediate' each in a run of its own")
        return self

    @model_validator(mode="after")
    def _a_shape_goes_alone(self) -> Self:
        if len(self.targets) > 1 and any(target.shape is not None for target in self.targets):
            raise ValueError("a target shape goes alone, not in a family of sizes")
        return self

    @model_validator(mode="after")
    def _masks_are_learned(self) -> Self:
        kind, while_training = self.importance.kind, self.schedule.kind != "staged"
        if self.schedule.kind == "learned_mask" and kind != "learned_mask":
            raise ValueError("schedule.kind 'learned_mask' needs importance.kind 'learned_mask'")
        if kind == "learned_mask" and not set(self.axes) <= set(MASKED_AXES):
            raise ValueError(
                f"importance.kind 'learned_mask' masks {', '.join(MASKED_AXES)}: "
                "axes must be among them"
            )
        if while_training and self.recovery.kind == "lora":
            raise ValueError(
                f"schedule.kind {self.schedule.kind!r} trains the weights that it prunes: "
                "recovery.kind must be 'full' or 'none'"
            )
        return self

    @model_validator(mode="after")
    def _means_are_measured(self) -> Self:
        unmeasured = self.importance.kind in ("fisher", "learned_mask")
        asked = f"compensation {self.compensation!r}"
        if self.compensation in WITH_BIASES and unmeasured:
            raise ValueError(f"{asked} goes with any importance but 'fisher' and 'learned_mask'")
        if self.compensation in WITH_BIASES and self.schedule.kind == "continuous":
            raise ValueError(f"{asked} does not go with schedule.kind 'continuous'")
        return self

    @field_validator("model", mode="before")
    @classmethod
    def _simple_model(cls, value: object) -> object:
        return parse_model(value) if isinstance(value, str) else value

    @field_validator("target", mode="before")
    @classmethod
    def _simple_target(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            return tuple(long_target(item) for item in value)
        return long_target(value)

    @field_validator("data", mode="before")
    @classmethod
    def _simple_data(cls, value: object) -> object:
        return {"train": value} if isinstance(value, str) else value

    @property
    def num_ranks(self) -> int:
        """Processes that share the run: one for each GPU, or as many on the CPU."""
        return self.gpus or self.processes

    @property
    def targets(self) -> tuple[Target, ...]:
        """The sizes to publish, as given; a single target is a family of one."""
        return self.target if isinstance(self.target, tuple) else (self.target,)

    def calibration_size(
        self, *, num_tokens: int, num_increments: int, longest: int | None = None
    ) -> CalibrationSize:
        """How much text each cut is measured on, in a run of so many training tokens.

        `longest` is the text of the longest domain, in tokens.
        """
        tokens_between: int | None = num_tokens // num_increments
        if self.recovery.kind == "none":
            tokens_between = None
        elif self.schedule.kind == "continuous":
            tokens_between = 0  # Every few steps comes a cut.
        return self.importance.calibration.sized(
            moments=self.importance.kind == "fisher" or self.compensation in WITH_MOMENTS,
            tokens_between=tokens_between,
            longest=longest,
        )

    def sources(self) -> Iterator[tuple[str, DataSource]]:
        """Every text that the run reads, each with the field that names it."""
        for index, domain in enumerate(self.data.train):
            yield f"data.train.{index}.source", domain.source
        if self.data.evaluation is not None:
            yield "data.evaluation", self.data.evaluation
        for index, suite in enumerate(self.evaluation.suites):
            for field in ("source", "exemplars"):
                if (source := getattr(suite, field, None)) is not None:
                    yield f"evaluation.suites.{index}.{field}", source

    def with_sources(self, change: Callable[[DataSource], DataSource]) -> "Recipe":
        """The same recipe with `change` made to every text that it reads."""
        found = self.model_dump()
        for name, source in self.sources():
            *path, last = name.split(".")
            part: Any = found
            for step in path:
                part = part[int(step) if step.isdigit() else step]
            part[last] = change(source).model_dump()
        return Recipe.model_validate(found)
