"""Public models that one might download instead of pruning, and what their makers report of them.

Only figures that the named source prints; a model without any is listed for its size alone. They
were measured by other harnesses with prompts of their own, so they place a model roughly and are
never compared row by row. Sizes are counted from the shapes that config.json or, for MobileLLM, the
model card gives, tied parameters once; tests/registry/test_public_models.py counts them again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_LIGHTEVAL = "zero-shot, lighteval; ARC is the mean of easy and challenge, MMLU is cloze"
_SMOL_TASKS = ("hellaswag", "arc", "piqa", "mmlu_cloze", "commonsense_qa", "winogrande")
_LARGER_TASKS = ("hellaswag", "arc", "piqa", "commonsense_qa", "winogrande", "openbookqa")
_CARD_135M = "model card of HuggingFaceTB/SmolLM2-135M"
_CARD_360M = "model card of HuggingFaceTB/SmolLM2-360M"
_CARD_1700M = "model card of HuggingFaceTB/SmolLM2-1.7B"
_NEARBY = 2.0


@dataclass(frozen=True, kw_only=True)
class PublicModel:
    """`figures` are accuracies in percent by task, as `source` prints them."""

    name: str
    num_parameters: int
    figures: Mapping[str, float] = field(default_factory=dict)
    source: str | None = None
    protocol: str | None = None


def _measured(
    name: str, num_parameters: int, source: str, tasks: Sequence[str], *values: float
) -> PublicModel:
    return PublicModel(
        name=name,
        num_parameters=num_parameters,
        figures=dict(zip(tasks, values, strict=True)),
        source=source,
        protocol=_LIGHTEVAL,
    )


PUBLIC_MODELS: tuple[PublicModel, ...] = (
    PublicModel(name="EleutherAI/pythia-70m", num_parameters=70_426_624),
    PublicModel(name="openai-community/gpt2", num_parameters=124_439_808),
    PublicModel(name="facebook/MobileLLM-125M", num_parameters=124_635_456),
    _measured(
        *("HuggingFaceTB/SmolLM-135M", 134_515_008, _CARD_135M, _SMOL_TASKS),
        *(41.2, 42.4, 68.4, 30.2, 32.7, 51.3),
    ),
    _measured(
        *("HuggingFaceTB/SmolLM2-135M", 134_515_008, _CARD_135M, _SMOL_TASKS),
        *(42.1, 43.9, 68.4, 31.5, 33.9, 51.3),
    ),
    PublicModel(name="EleutherAI/pythia-160m", num_parameters=162_322_944),
    PublicModel(name="facebook/MobileLLM-350M", num_parameters=345_355_200),
    _measured(
        *("HuggingFaceTB/SmolLM-360M", 361_821_120, _CARD_360M, _SMOL_TASKS),
        *(51.8, 50.1, 71.6, 34.4, 35.3, 52.8),
    ),
    _measured(
        *("HuggingFaceTB/SmolLM2-360M", 361_821_120, _CARD_360M, _SMOL_TASKS),
        *(54.5, 53.0, 71.7, 35.8, 38.0, 52.5),
    ),
    PublicModel(name="EleutherAI/pythia-410m", num_parameters=405_334_016),
    _measured(
        *("Qwen/Qwen2.5-0.5B", 494_032_768, _CARD_360M, _SMOL_TASKS),
        *(51.2, 45.4, 69.9, 33.7, 31.6, 54.1),
    ),
    PublicModel(name="Qwen/Qwen3-0.6B-Base", num_parameters=596_049_920),
    PublicModel(name="facebook/MobileLLM-600M", num_parameters=603_188_352),
    PublicModel(name="facebook/MobileLLM-1B", num_parameters=1_005_461_760),
    PublicModel(name="EleutherAI/pythia-1b", num_parameters=1_011_781_632),
    _measured(
        *("meta-llama/Llama-3.2-1B", 1_235_814_400, _CARD_1700M, _LARGER_TASKS),
        *(61.2, 49.2, 74.8, 41.2, 57.8, 38.4),
    ),
    PublicModel(name="princeton-nlp/Sheared-LLaMA-1.3B", num_parameters=1_345_423_360),
    _measured(
        *("Qwen/Qwen2.5-1.5B", 1_543_714_304, _CARD_1700M, _LARGER_TASKS),
        *(66.4, 58.5, 76.1, 34.1, 59.3, 40.0),
    ),
    _measured(
        *("HuggingFaceTB/SmolLM-1.7B", 1_711_376_384, _CARD_1700M, _LARGER_TASKS),
        *(62.9, 59.9, 76.0, 38.0, 54.7, 42.4),
    ),
    _measured(
        *("HuggingFaceTB/SmolLM2-1.7B", 1_711_376_384, _CARD_1700M, _LARGER_TASKS),
        *(68.7, 60.5, 77.6, 43.6, 59.4, 42.2),
    ),
)


def models_near(num_parameters: int, also: Sequence[str] = ()) -> list[PublicModel]:
    """Models of half to twice a size, and those named whatever their size, smallest first."""
    low, high = num_parameters / _NEARBY, num_parameters * _NEARBY
    return [
        model
        for model in PUBLIC_MODELS
        if low <= model.num_parameters <= high or model.name in also
    ]
