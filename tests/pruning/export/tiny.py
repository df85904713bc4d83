"""Tiny checkpoints to export: random, cut unevenly, with a tokenizer and a chat template."""

from pathlib import Path

from transformers import PreTrainedModel

from pruning.models.geometry import unpruned_plan
from pruning.plan import LayerPlan, PruningPlan
from pruning.surgery import apply_plan
from tests.pruning.tiny import make_tiny_model, make_tiny_tokenizer

CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def cut(model: PreTrainedModel, *, evenly: bool = False) -> None:
    """Remove channels and KV groups, from each layer as many or from each another number."""
    base = unpruned_plan(model)
    layers = tuple(
        LayerPlan(
            intermediate=layer.intermediate[: 40 if evenly else 60 - 8 * i],
            kv_groups=layer.kv_groups[1:] if evenly else layer.kv_groups[: 3 - min(i, 2)],
        )
        for i, layer in enumerate(base.layers)
    )
    apply_plan(model, PruningPlan(layers=layers), previous=base)


def save_tiny_checkpoint(
    directory: Path, family: str = "llama", *, evenly: bool = False, tied: bool = True
) -> Path:
    """What `save_checkpoint` leaves, without manifest and training state."""
    model = make_tiny_model(family, tied=tied)
    cut(model, evenly=evenly)
    model.save_pretrained(directory)
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(directory)
    return directory
