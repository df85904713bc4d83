"""What training makes small: the loss of a batch, by the recipe's terms."""

from torch import Tensor
from transformers import PreTrainedModel

from pruning.models.distillation import distillation_loss, distillation_loss_from, top_tokens
from pruning.models.loss import training_loss
from pruning.recipe_parts.recovery import Recovery
from pruning.training.teacher_cache import TeacherCache


def batch_loss(
    model: PreTrainedModel,
    ids_BT: Tensor,
    recovery: Recovery,
    *,
    teacher: PreTrainedModel | None = None,
    cache: TeacherCache | None = None,
    separator: int | None = None,
) -> Tensor:
    """Summed over the predictions of a batch.

    With a teacher, the recipe's distillation takes the place of plain cross-entropy; a cache spares
    the teacher what it has seen.
    """
    distillation, precision = recovery.distillation, recovery.precision
    if distillation is None or teacher is None:
        return training_loss(model, ids_BT, precision, separator=separator)
    if cache is None:
        return distillation_loss(
            model, teacher, ids_BT, distillation, precision, separator=separator
        )
    known = cache.get(
        ids_BT,
        lambda new_BT: top_tokens(
            teacher,
            new_BT,
            distillation,
            precision,
            num_tokens=cache.num_tokens,
            separator=separator,
        ),
    )
    return distillation_loss_from(
        model, known, ids_BT, distillation, precision, separator=separator
    )
