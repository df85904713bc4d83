"""The recipe: the complete, frozen description of a run.

The API validates a request with this class, the registry stores it, the library consumes it: nobody
converts it, and a run reads no other setting. Simple forms are accepted where a person would type
them (`"model": "org/name@revision"`, `"target": "100M"`, `"data": "org/name:config"`); the stored
recipe is always the long form with every default filled. Torch-free.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from string import Formatter
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pruning import serving
from pruning.presets import PRESETS

MAX_INLINE_CHARACTERS = 65_536
_QUANTITY = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<suffix>[KMBkmb]?)")
_FILE_ID = re.compile(r"file_[0-9a-f]{32}")
_MULTIPLIERS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}


class Part(BaseModel):
    """Base of the recipe and its parts: immutable, and a misspelt field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_auto(cls, value: object) -> object:
        """`"auto"` means "as if I had not written it": the default, or what the run finds."""
        if isinstance(value, Mapping):
            return {k: v for k, v in value.items() if not (isinstance(v, str) and v == "auto")}
        return value


# --- model ----------------------------------------------------------------------------------------


class HubModel(Part):
    """A model repository on a hub; `revision` is pinned to a commit when the run starts."""

    source: Literal["hub"] = "hub"
    id: str = Field(
        pattern=r"^[\w.-]+(/[\w.-]+)?$", max_length=200, description="Repository, `org/name`."
    )
    revision: str = Field(
        "main", pattern=r"^[\w./-]+$", max_length=200, description="Branch, tag or commit."
    )
    credential: str | None = Field(
        None,
        pattern=r"^cred_[0-9a-f]{32}$",
        description="Id of a stored credential for gated models.",
    )


class PathModel(Part):
    """A model directory, or one GGUF file in it, on the worker's own disk."""

    source: Literal["path"] = "path"
    path: str = Field(min_length=1, max_length=4096, description="Directory, absolute.")
    gguf_file: str | None = Field(
        None, pattern=r"^[^/\\]+\.gguf$", max_length=255, description="Name of the GGUF file in it."
    )


ModelSource = Annotated[HubModel | PathModel, Field(discriminator="source")]


def parse_model(text: str) -> dict[str, Any]:
    """`org/name`, `org/name@revision`, `/a/directory` or `/a/model.gguf` as a long form."""
    if text.startswith("/"):
        if text.endswith(".gguf"):
            directory, _, file_name = text.rpartition("/")
            return {"source": "path", "path": directory or "/", "gguf_file": file_name}
        return {"source": "path", "path": text}
    repository, _, revision = text.partition("@")
    return {"source": "hub", "id": repository, **({"revision": revision} if revision else {})}


# --- target ---------------------------------------------------------------------------------------


class Shape(Part):
    """A uniform architecture to prune to (Sheared-LLaMA's target shape); absent means unchanged."""

    hidden_size: int | None = Field(None, gt=0, description="Width of the residual stream.")
    intermediate_size: int | None = Field(None, gt=0, description="MLP channels per layer.")
    num_attention_heads: int | None = Field(None, gt=0, description="Query heads per layer.")
    num_key_value_heads: int | None = Field(None, gt=0, description="KV heads per layer.")
    num_hidden_layers: int | None = Field(None, gt=0, description="Decoder layers.")


class Target(Part):
    """The size to reach: exactly one of the four.

    `num_parameters` counts every parameter once (tied ones once); `sparsity` is the share of the
    *prunable* parameters (those of the decoder layers) to remove; `size_bytes` is the weights on
    disk in `output.dtype`; `shape` is an explicit uniform architecture.
    """

    num_parameters: int | None = Field(None, gt=0, description="All parameters, tied ones once.")
    sparsity: float | None = Field(
        None, ge=0, lt=1, description="Share of the prunable parameters to remove."
    )
    size_bytes: int | None = Field(None, gt=0, description="Bytes of the weights on disk.")
    shape: Shape | None = Field(None, description="A uniform architecture.")

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                "give exactly one of num_parameters, sparsity, size_bytes, shape; "
                f"got {', '.join(given) or 'none'}"
            )
        return self


def parse_target(value: str | int) -> dict[str, Any]:
    """`100M`, `1.5B`, `110000000` count parameters; `30%` is the share of prunable ones removed.

    Raises:
        ValueError: the text is neither.
    """
    if isinstance(value, int):
        return {"num_parameters": value}
    text = value.strip()
    if text.endswith("%"):
        try:
            return {"sparsity": float(text[:-1]) / 100}
        except ValueError:
            raise ValueError(f"{value!r} is not a percentage such as '30%'") from None
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{value!r} is not a size such as '100M', '1.5B' or '30%'")
    return {"num_parameters": round(float(match["number"]) * _MULTIPLIERS[match["suffix"].upper()])}


def _expand_target(value: object) -> object:
    if isinstance(value, str | int) and not isinstance(value, bool):
        return parse_target(value)
    return value


# --- data -----------------------------------------------------------------------------------------


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


class PathData(Part):
    """A text file, or a directory in which each file is a domain, on the worker's own disk."""

    kind: Literal["path"] = "path"
    path: str = Field(min_length=1, max_length=4096, description="File or directory, absolute.")
    text_field: str = Field("text", max_length=200, description="Column or key with the text.")


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


DataSource = Annotated[HubData | PathData | InlineData | UploadData, Field(discriminator="kind")]


def parse_data_source(text: str) -> dict[str, Any]:
    """`org/name`, `org/name:config`, `file_…` or an absolute path as a long form."""
    if text.startswith("/"):
        return {"kind": "path", "path": text}
    if _FILE_ID.fullmatch(text):
        return {"kind": "upload", "file": text}
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
    def _held_out_by_domain(self) -> Self:
        if self.mixture.kind == "dynamic" and self.evaluation is not None:
            raise ValueError(
                "a dynamic mixture measures text held out of each domain: leave out data.evaluation"
            )
        return self


# --- method: axes x importance x allocation x schedule x compensation x recovery ------------------

Axis = Literal[
    "intermediate",
    "kv_group",
    "query_head",
    "expert",
    "hidden",
    "layer",
    "attention_block",
    "mlp_block",
]
_DEPTH_AXES: tuple[Axis, ...] = ("layer", "attention_block", "mlp_block")
MASKED_AXES: tuple[Axis, ...] = ("intermediate", "kv_group", "query_head", "layer", "hidden")
"""Axes that masks can be learned of."""
ImportanceKind = Literal[
    "magnitude",
    "taylor",
    "fisher",
    "fluctuation",
    "wanda",
    "activation",
    "random",
    "block_influence",
    "fused",
    "learned_mask",
    "pca_energy",
]
HIDDEN_IMPORTANCE: tuple[ImportanceKind, ...] = (
    "activation",
    "taylor",
    "magnitude",
    "random",
    "pca_energy",
    "learned_mask",
)
"""What hidden channels can be measured by."""
TaylorOrder = Literal["first", "second", "mix"]
AllocationKind = Literal[
    "uniform", "layer_adaptive", "equal_marginal", "global_zscore", "fluctuation"
]
Layout = Literal["per_layer", "uniform"]
Compensation = Literal["none", "least_squares", "newton", "bias", "affine", "merge"]
WITH_BIASES: tuple[Compensation, ...] = ("bias", "affine")
"""What keeps a constant of what a cut takes, and so needs the mean of it."""
MethodName = Literal[
    "adapt_pruner",
    "espalier",
    "llm_pruner",
    "flap",
    "shortgpt",
    "minitron",
    "sheared_llama",
    "efficientllm",
    "saap",
    "slicegpt",
]
ExportFormat = Literal[
    "gguf:f32",
    "gguf:f16",
    "gguf:bf16",
    "gguf:q8_0",
    "gguf:q5_1",
    "gguf:q5_0",
    "gguf:q4_1",
    "gguf:q4_0",
    "onnx",
    "padded",
    "remote_code",
    "nemotron_nas",
]
ServingEngine = Literal[
    "transformers", "vllm", "llama.cpp", "onnxruntime", "sglang", "mlx", "tensorrt-llm"
]


class Calibration(Part):
    """Text that importance is measured on, drawn anew from the training text for each increment."""

    num_samples: int = Field(32, gt=0, description="Sequences drawn.")
    sequence_length: int = Field(256, ge=8, description="Tokens of each.")
    batch_size: int = Field(8, gt=0, description="Sequences measured at once.")


class Importance(Part):
    """How groups and layers are scored; higher means keep."""

    kind: ImportanceKind = "taylor"
    taylor_order: TaylorOrder = Field("first", description="Order of the Taylor expansion.")
    calibration: Calibration = Field(Calibration(), description="The text it is measured on.")
    ridge: float = Field(
        0.01, gt=0, lt=1, description="By how much the diagonal of input moments is raised."
    )
    rotation: Literal["global", "per_block"] = Field(
        "global",
        description="`pca_energy`: one for the whole model, which stays a stock model, or "
        "SliceGPT's own for each block, with shortcut matrices between them.",
    )


class Constraints(Part):
    """What every allocation honours, so that the result can be served."""

    width_multiple: int = Field(32, gt=0, description="Intermediate sizes are multiples of this.")
    min_intermediate_size: int = Field(32, gt=0, description="No MLP gets narrower.")
    hidden_multiple: int = Field(8, gt=0, description="Hidden sizes are multiples of this.")
    min_hidden_size: int = Field(32, gt=0, description="No residual stream gets narrower.")
    min_kv_groups: int = Field(1, gt=0, description="No layer keeps fewer KV heads.")
    min_query_heads_per_group: int = Field(
        1, gt=0, description="No KV head keeps fewer query heads."
    )
    min_experts: int = Field(
        1,
        gt=0,
        description="No layer of experts keeps fewer, nor fewer than a token passes through.",
    )
    tensor_parallel: int = Field(1, gt=0, description="Every width and head count divides by this.")
    protected_layers: tuple[int, ...] = Field(
        (), description="Layers that lose nothing; -1 is the last one."
    )

    def protects(self, layer: int, num_layers: int) -> bool:
        """Whether a layer of `num_layers` loses nothing."""
        return layer in self.protected_layers or layer - num_layers in self.protected_layers


class Allocation(Part):
    """How the sparsity of an increment is spread over layers and axes."""

    kind: AllocationKind = "layer_adaptive"
    amplitude: float = Field(1.0, ge=0, le=1, description="Spread around the mean layer sparsity.")
    layout: Layout = Field(
        "per_layer", description="Own widths for each layer, or the same for all."
    )
    constraints: Constraints = Field(Constraints(), description="What it honours.")


ScheduleKind = Literal["staged", "learned_mask", "continuous"]


class Schedule(Part):
    """When the cuts come, and how the training tokens are shared between them.

    `staged` cuts first in each increment, then trains. The others prune while the first part of an
    increment trains: `learned_mask` learns masks with the weights and cuts once; `continuous` cuts
    little by little, by what the training steps themselves show.
    """

    kind: ScheduleKind = Field("staged", description="What an increment begins with.")
    pruning_share: float = Field(
        0.2,
        gt=0,
        le=1,
        description="Share of an increment's training over which it is pruned, unless `staged`.",
    )
    steps_per_cut: int = Field(
        8, gt=0, description="Optimizer steps from cut to cut, where `continuous`."
    )
    num_increments: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="Default: one for every 7 % of parameters removed, at least 3.",
    )
    num_tokens: int | None = Field(
        None,
        ge=0,
        description="Training tokens over all increments. Default: one pass over the corpus.",
    )
    token_share: Literal["constant", "linear", "cosine"] = Field(
        "linear", description="How training tokens are shared between increments."
    )


class LearningRate(Part):
    """One schedule over all increments: linear warm-up, constant, decay to `min_ratio` x peak."""

    peak: float = Field(1e-4, gt=0, lt=1, description="Its largest value.")
    warmup_fraction: float = Field(
        0.05, ge=0, le=1, description="Share of the steps it rises over."
    )
    decay_fraction: float = Field(0.1, ge=0, le=1, description="Share of the steps it falls over.")
    min_ratio: float = Field(0.1, ge=0, le=1, description="Where it ends, as a share of the peak.")
    kind: Literal["wsd", "cosine", "constant"] = "wsd"


class TeacherCache(Part):
    """What the teacher predicts of each training sequence, kept on the worker's disk.

    It pays where text is seen more than once: then the teacher runs in the first pass only.
    """

    top_k: int = Field(32, ge=1, le=1024, description="Most likely tokens kept of each prediction.")


class Distillation(Part):
    """Learning from the model before the cut, beside the text itself.

    The loss of a token is (1 - weight) x cross-entropy + weight x temperature² x divergence
    + hidden_weight x cosine distance of the last hidden states.
    """

    teacher: Literal["base", "previous"] = Field(
        "base", description="The base model, or the model as it stood before the increment's cut."
    )
    divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon"] = Field(
        "forward_kl", description="Between the two predictions."
    )
    temperature: float = Field(
        1.0, gt=0, le=100, description="Both predictions are softened by it."
    )
    weight: float = Field(0.5, ge=0, le=1, description="Share of the divergence in the loss.")
    hidden_weight: float = Field(
        0.0, ge=0, description="Weight of the distance of the last hidden states."
    )
    teacher_cache: TeacherCache | None = Field(
        None, description="Keep what the teacher predicts, for text that is seen again."
    )

    @model_validator(mode="after")
    def _cacheable(self) -> Self:
        plain = (self.teacher, self.divergence, self.hidden_weight) == ("base", "forward_kl", 0)
        if self.teacher_cache is not None and not plain:
            raise ValueError(
                "teacher_cache holds the base model's likeliest tokens: it goes with teacher "
                "'base', divergence 'forward_kl' and hidden_weight 0"
            )
        return self


class Lora(Part):
    """Low-rank factors beside every projection, merged into the weights after each increment."""

    rank: int = Field(16, gt=0, le=1024, description="Rank of the adapters.")
    alpha: int = Field(32, gt=0, description="Their scale is alpha / rank.")
    train_norms_and_embeddings: bool = Field(False, description="Whether these train as well.")


class Recovery(Part):
    """Training after each cut: of all weights, of low-rank factors beside them, or none."""

    kind: Literal["full", "lora", "none"] = "full"
    lora: Lora = Field(Lora(), description="Train low-rank adapters instead of all weights.")
    sequence_length: int = Field(512, ge=8, description="Tokens of a training sequence.")
    separate_documents: bool = Field(
        False,
        description="Attention and positions begin anew with each document of a sequence. "
        "Otherwise documents that share a sequence are one text.",
    )
    batch_sequences: int | None = Field(
        None, gt=0, description="Sequences per optimizer step. Default: 8, fewer in a short run."
    )
    micro_batch_sequences: int | None = Field(
        None, gt=0, description="Sequences held in memory at once. Default: by memory."
    )
    learning_rate: LearningRate = Field(
        LearningRate(), description="Its course over all increments."
    )
    weight_decay: float = Field(0.0, ge=0, description="Of AdamW.")
    betas: tuple[float, float] = Field((0.9, 0.95), description="Of AdamW.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to it.")
    fresh_moments: bool = Field(
        False,
        description="Forget Adam's moments at every cut, as Adapt-Pruner's code does. Otherwise "
        "they are cut like the weights.",
    )
    average_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Publish and evaluate a moving average of the weights, which keeps this share "
        "of itself in each step. None: the weights as they are.",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="Of the products; weights are float32."
    )
    distillation: Distillation | None = Field(
        None, description="Learn from the model before the cut as well."
    )
    activation_checkpointing: bool = Field(
        False, description="A third more time for a fraction of the memory of long sequences."
    )
    compile: bool = Field(
        False,
        description="Compile each layer: a minute or more after a cut, then faster steps. It pays "
        "where increments take much longer than that.",
    )
    checkpoint_seconds: float | None = Field(
        900.0,
        gt=0,
        description="How much training time a kill may cost: inside an increment the state is kept "
        "this often, on the worker's own disk. None: only increments are.",
    )

    @model_validator(mode="after")
    def _averages_what_stays(self) -> Self:
        if self.average_decay is not None and self.kind == "lora":
            raise ValueError("average_decay goes with kind 'full': factors are new in each cut")
        return self


class PerplexitySuite(Part):
    """Perplexity on a text of the user's own, in windows that do not overlap, whole ones only.

    `wikitext` joins the lines as the pruning papers do for WikiText-2: blank lines are empty
    rows, two newlines stand between rows. `as_is` takes the text as it stands.
    """

    kind: Literal["perplexity"] = "perplexity"
    name: str = Field(pattern=r"^[\w.-]{1,48}$", description="A name; distinct within the recipe.")
    source: DataSource = Field(description="The text.")
    context_lengths: tuple[Annotated[int, Field(ge=8)], ...] = Field(
        (2048,), min_length=1, description="Windows, in tokens."
    )
    join: Literal["as_is", "wikitext"] = Field("as_is", description="How lines become one text.")
    max_tokens: int | None = Field(None, gt=0, description="The text is cut there.")

    @field_validator("source", mode="before")
    @classmethod
    def _simple_source(cls, value: object) -> object:
        return parse_data_source(value) if isinstance(value, str) else value


class HarnessSuite(Part):
    """A task of lm-evaluation-harness, by its name there."""

    kind: Literal["lm_eval"] = "lm_eval"
    task: str = Field(pattern=r"^[\w.-]{1,64}$", description="Its name, such as `arc_easy`.")
    num_fewshot: int | None = Field(
        None, ge=0, le=64, description="Solved examples before each. Default: the task's own."
    )
    limit: int | None = Field(None, gt=0, description="No more than so many rows.")

    @property
    def name(self) -> str:
        """What it is called in evaluations."""
        return self.task


RowKind = Literal["choice", "letters", "partial", "lastword"]
_PROMPT_FIELD = re.compile(r"\w+(\[\d+\])?")


class RowsSuite(Part):
    """Rows of a JSON Lines file as a task; docs/evaluation.md has their format by kind."""

    kind: Literal["rows"] = "rows"
    name: str = Field(pattern=r"^[\w.-]{1,64}$", description="A name; distinct within the recipe.")
    source: Annotated[PathData | UploadData, Field(discriminator="kind")]
    rows: RowKind = Field("choice", description="How a row is scored.")
    prompt: str = Field(
        "{query}", max_length=4096, description="The context, with the row's fields in braces."
    )
    exemplars: Annotated[PathData | UploadData, Field(discriminator="kind")] | None = Field(
        None, description="Rows of the same format to show before each; never scored."
    )
    num_fewshot: int = Field(0, ge=0, le=64, description="How many of them, from the first on.")
    limit: int | None = Field(None, gt=0, description="No more than so many rows.")

    @field_validator("source", "exemplars", mode="before")
    @classmethod
    def _simple_source(cls, value: object) -> object:
        return parse_data_source(value) if isinstance(value, str) else value

    @field_validator("prompt")
    @classmethod
    def _plain_fields(cls, prompt: str) -> str:
        # Attributes and widths would reach into Python, or ask for gigabytes of blanks.
        for _, field, spec, conversion in Formatter().parse(prompt):
            plain = field is None or _PROMPT_FIELD.fullmatch(field)
            if not plain or spec or conversion:
                raise ValueError(f"only {{field}} and {{field[0]}} are allowed, not {field!r}")
        return prompt

    @model_validator(mode="after")
    def _exemplars_to_show(self) -> Self:
        if self.num_fewshot and self.exemplars is None:
            raise ValueError("num_fewshot needs exemplars")
        return self


Suite = Annotated[PerplexitySuite | HarnessSuite | RowsSuite, Field(discriminator="kind")]


def parse_suite(text: str) -> dict[str, Any]:
    """The name of an lm-eval task, or the absolute path of a text to take the perplexity of."""
    if text.startswith("/"):
        stem = re.sub(r"[^\w.-]", "_", text.rpartition("/")[2].partition(".")[0])
        return {"kind": "perplexity", "name": stem[:48] or "text", "source": text}
    return {"kind": "lm_eval", "task": text}


class Evaluation(Part):
    """What is measured of each checkpoint."""

    context_length: int = Field(
        512, ge=8, description="Window of the held-out perplexity, in tokens."
    )
    speed: bool = Field(True, description="Measure prefill and decode of the base and final model.")
    suites: tuple[Suite, ...] = Field(
        (), max_length=64, description="Measured of the base model and of the final one, at least."
    )
    suites_of: Literal["final", "every"] = Field(
        "final", description="Whether the suites measure the checkpoints on the way as well."
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="Of the suites' products; bfloat16 flips some answers."
    )
    compare_with: tuple[ModelSource, ...] = Field(
        (), max_length=8, description="Models one might download instead: measured by the suites."
    )
    first_rows: int = Field(
        100, ge=0, description="Tasks report on so many rows before they go through all."
    )

    @field_validator("suites", mode="before")
    @classmethod
    def _simple_suites(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            return tuple(parse_suite(item) if isinstance(item, str) else item for item in value)
        return value

    @field_validator("compare_with", mode="before")
    @classmethod
    def _simple_models(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            return tuple(parse_model(item) if isinstance(item, str) else item for item in value)
        return value

    @field_validator("suites")
    @classmethod
    def _distinct_names(cls, suites: tuple[Suite, ...]) -> tuple[Suite, ...]:
        names = [suite.name for suite in suites]
        reserved = {"perplexity", "speed", "domains"}
        if len(set(names)) != len(names) or reserved & set(names):
            raise ValueError(
                f"names must be distinct, and none of {', '.join(sorted(reserved))}; "
                f"got {', '.join(names)}"
            )
        return suites


class QualityFloor(Part):
    """Stop before the increment that would break it; the outcome is then `quality_floor`."""

    metric: Literal["perplexity_ratio"] = Field("perplexity_ratio", description="What is watched.")
    max: float = Field(gt=1, description="Its largest value.")


Keep = Literal["final", "frontier", "all"]


class Output(Part):
    """How the published checkpoints are stored, and which of them stay when the run is over.

    `final` is the last one; `frontier` also those that no other beats in size and perplexity; `all`
    every one, with what resuming from it needs.
    """

    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "bfloat16", description="Of the stored weights."
    )
    keep: Keep = Field("frontier", description="Which checkpoints stay.")
    exports: tuple[ExportFormat, ...] = Field(
        (), description="Other formats that the final checkpoint brings along."
    )


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
        method = value.get("method", "espalier")
        fragment = PRESETS.get(method, {}) if isinstance(method, str) else {}
        return serving.fill(_overlay(_yielding(fragment, value), _long_data(value)))

    @model_validator(mode="after")
    def _servable(self) -> Self:
        allocation, constraints = self.allocation, self.allocation.constraints
        serving.check(
            self.serve_with,
            self.output.exports,
            tensor_parallel=self.tensor_parallel,
            layout=allocation.layout,
            width_multiple=constraints.width_multiple,
            constrained_tensor_parallel=constraints.tensor_parallel,
        )
        return self

    @model_validator(mode="after")
    def _spread_over_one_kind(self) -> Self:
        if self.gpus is not None and self.processes > 1:
            raise ValueError("give gpus or processes, not both: a run is spread over one of them")
        return self

    @model_validator(mode="after")
    def _layers_go_alone(self) -> Self:
        """Widths are allotted among layers that stay: a second run thins out a shallower model."""
        blocks = {"attention_block", "mlp_block"}
        if not set(_DEPTH_AXES) & set(self.axes):
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
            return tuple(_expand_target(item) for item in value)
        return _expand_target(value)

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


def _yielding(fragment: Mapping[str, Any], request: Mapping[str, Any]) -> Mapping[str, Any]:
    """A preset's fragment without what the request makes senseless.

    Repair of whole blocks; a Newton step with curvatures that nothing measures, or before training,
    whose first steps go the same way.
    """
    axes = request.get("axes")
    if isinstance(axes, list | tuple) and set(_DEPTH_AXES) & {str(axis) for axis in axes}:
        fragment = {**fragment, "compensation": "none"}
    elif fragment.get("compensation") == "newton" and not _ends_at_the_cut(fragment, request):
        fragment = {**fragment, "compensation": "least_squares"}
    data = request.get("data")
    if isinstance(data, Mapping) and data.get("evaluation") not in (None, "auto"):
        # A mixture that follows the domains' losses needs text held out of each.
        fragment = {key: part for key, part in fragment.items() if key != "data"}
    return fragment


def _ends_at_the_cut(fragment: Mapping[str, Any], request: Mapping[str, Any]) -> bool:
    """Whether the curvatures are measured, and nothing trains afterwards."""
    asked = _overlay(fragment, {k: v for k, v in request.items() if isinstance(v, Mapping)})
    importance, recovery = asked.get("importance", {}), asked.get("recovery", {})
    return (importance.get("kind"), recovery.get("kind")) == ("fisher", "none")


def _long_data(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """A request whose data, if given as a text alone, can be laid over a preset's."""
    data = request.get("data")
    return {**request, "data": {"train": data}} if isinstance(data, str) else request


def _overlay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, recursively; `"auto"` in `over` leaves what `base` says."""
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, str) and value == "auto" and key in base:
            continue
        below = merged.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = _overlay(below, value) if both else value  # type: ignore[arg-type]
    return merged
