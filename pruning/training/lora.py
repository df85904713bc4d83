"""Recovery by low-rank factors (LoRA, arXiv 2106.09685), merged once they are trained."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

from pruning.recipe_parts.recovery import Lora


@contextmanager
def low_rank(model: PreTrainedModel, lora: Lora) -> Iterator[None]:
    """Inside only the factors learn, with norms and embeddings if asked for; then they are merged.

    The model is changed in place, and afterwards has the modules and parameters that it had.
    """
    # Imported here: only this kind of recovery needs it.
    from peft import LoraConfig, get_peft_model

    trained = {id(p) for p in model.parameters() if p.requires_grad}
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules="all-linear"
    )
    wrapped = get_peft_model(model, config)
    if lora.train_norms_and_embeddings:
        for parameter in _norms_and_embeddings(model):
            parameter.requires_grad_(True)
    try:
        yield
    finally:
        wrapped.merge_and_unload()
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in trained)


def _norms_and_embeddings(model: PreTrainedModel) -> Iterator[nn.Parameter]:
    yield from model.get_input_embeddings().parameters()
    yield from (
        parameter
        for name, parameter in model.named_parameters()
        if parameter.dim() == 1 and "lora_" not in name
    )
