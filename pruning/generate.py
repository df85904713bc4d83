"""What models write after a prompt: `python -m pruning.generate`, JSON in, JSON out.

Reads `{"models": […], "prompt": "…", "max_new_tokens": 64}` from standard input, where models are
written as in a recipe, and writes `{"texts": […], "seconds": […]}`, one entry a model.
"""

import gc
import os
import sys
import time
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from pruning.errors import PruningError
from pruning.models.load import load_base_model
from pruning.recipe_parts.model import ModelSource

MAX_PROMPT_TOKENS = 512
_NICENESS = 10


class Request(BaseModel):
    """What is asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[ModelSource, ...] = Field(min_length=1)
    prompt: str = Field(min_length=1)
    max_new_tokens: int = Field(64, gt=0, le=1024)


class Answer(BaseModel):
    """What is answered."""

    model_config = ConfigDict(frozen=True)

    texts: tuple[str, ...]
    seconds: tuple[float, ...]


def generate(source: ModelSource, prompt: str, max_new_tokens: int) -> tuple[str, float]:
    """What one model writes, greedily, and the seconds it wrote for.

    Raises:
        PruningError: the model cannot be opened.
    """
    loaded = load_base_model(source, dtype=torch.bfloat16)
    tokenizer: Any = loaded.tokenizer
    model: Any = loaded.model
    inputs = tokenizer(prompt, return_tensors="pt", truncation=True, max_length=MAX_PROMPT_TOKENS)
    inputs.pop("token_type_ids", None)
    started = time.perf_counter()
    with torch.inference_mode():
        output_BT = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            repetition_penalty=1.1,
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id or 0,
        )
    seconds = time.perf_counter() - started
    written = output_BT[0, inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(written, skip_special_tokens=True)), seconds


def main() -> int:
    """Exit code 0 with the answer on stdout, 1 with the reason as the last line on stderr."""
    request = Request.model_validate_json(sys.stdin.buffer.read())
    os.nice(_NICENESS)  # A job that runs beside goes first.
    texts, seconds = [], []
    for source in request.models:
        try:
            text, took = generate(source, request.prompt, request.max_new_tokens)
        except PruningError as error:
            sys.stderr.write(f"{error.message}\n")
            return 1
        texts.append(text)
        seconds.append(took)
        gc.collect()
    answer = Answer(texts=tuple(texts), seconds=tuple(seconds))
    sys.stdout.write(answer.model_dump_json())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
