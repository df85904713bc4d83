import json
import math
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from pruning.events import Event, StepFinished
from pruning.pipeline import run
from tests.pruning.data.test_chat import PLAIN, conversations, tokenizer_with
from tests.pruning.recipes import make_recipe


def test_a_run_learns_what_the_assistant_says_from_the_text_and_from_a_teacher(
    tmp_path: Path, tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model, chats = tmp_path / "model", tmp_path / "chats.jsonl"
    tiny_llama.save_pretrained(model)
    tokenizer_with(tiny_tokenizer, PLAIN).save_pretrained(model)
    chats.write_text("".join(json.dumps(row) + "\n" for row in conversations(60)))
    source = {"kind": "path", "path": str(chats), "messages_field": "messages"}
    recipe = make_recipe(
        model,
        chats,
        data={"train": source, "held_out_fraction": 0.1},
        schedule={"num_increments": 1, "num_tokens": 8 * 256},
        recovery={
            "sequence_length": 64,
            "batch_sequences": 4,
            "precision": "float32",
            "learning_rate": {"peak": 3e-3},
            "distillation": {"weight": 0.5},
        },
    )
    events: list[Event] = []
    run(recipe, tmp_path / "out", events.append, device="cpu")
    losses = [event.loss for event in events if isinstance(event, StepFinished)]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]
