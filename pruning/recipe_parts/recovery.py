"""How a recipe trains after each cut."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pruning.recipe_parts.part import Part


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


MICRO_BATCH_TOKENS = {"cpu": 1024, "cuda": 4096}
"""Held in memory at once where the recipe does not say. Of a 135M model each token keeps 1 MB until
its gradient is there; what twice as many gain and cost on a CPU is in docs/training.md."""

COMPILED_MICRO_BATCH_TOKENS = MICRO_BATCH_TOKENS | {"cpu": 2048}
"""The same where layers are compiled: each token keeps less than half as much there."""


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

    def micro_batch(self, device: str) -> int:
        """Sequences held in memory at once on a "cpu" or "cuda", if a batch has as many."""
        tokens = COMPILED_MICRO_BATCH_TOKENS if self.compile else MICRO_BATCH_TOKENS
        automatic = max(1, tokens[device] // self.sequence_length)
        return self.micro_batch_sequences or automatic

    @model_validator(mode="after")
    def _averages_what_stays(self) -> Self:
        if self.average_decay is not None and self.kind == "lora":
            raise ValueError("average_decay goes with kind 'full': factors are new in each cut")
        return self
