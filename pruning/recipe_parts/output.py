"""What a recipe publishes: formats, what is kept, engines."""

from typing import Literal

from pydantic import Field

from pruning.recipe_parts.part import Part

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
