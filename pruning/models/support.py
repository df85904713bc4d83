"""Which methods make sense for which architecture, said before anything runs. Torch-free."""

from collections.abc import Collection

from pruning.errors import UnsupportedModel
from pruning.models.families import FAMILIES, Family
from pruning.recipe import Recipe
from pruning.recipe_parts.method import ImportanceKind

_INSIDE_EXPERTS: tuple[ImportanceKind, ...] = (
    "magnitude",
    "taylor",
    "fused",
    "random",
    "block_influence",
)
"""What can be measured of experts: their inner activations reach no module of their own."""


def check_supported(recipe: Recipe, model_type: str, *, carries_stream: bool = False) -> None:
    """Refuse a method that the model's architecture has no part for.

    Raises:
        UnsupportedModel: it is one; the message says what would go.
    """
    family = FAMILIES.get(model_type)
    if family is None:
        raise UnsupportedModel(
            f"model_type {model_type!r} is not supported",
            param="model",
            hint=f"supported: {', '.join(sorted(FAMILIES))}",
        )
    if carries_stream:
        raise _refused(
            family,
            "layers carry shortcuts of a sliced stream, which no second run prunes",
            "model",
            "prune the model that was sliced",
        )
    if recipe.narrows_stream:
        require_selectable(family)
    if recipe.importance.kind == "pca_energy":
        by_block = recipe.importance.rotation == "per_block"
        (require_sliceable if by_block else require_rotatable)(family)
    if family.experts is not None:
        _check_experts(recipe, family)
    elif "expert" in recipe.axes:
        able = [name for name, other in FAMILIES.items() if other.experts is not None]
        raise _refused(family, "has no experts", "axes", f"axis 'expert' goes with {_listed(able)}")


def require_selectable(family: Family) -> None:
    """Raise where no stock model computes what is left without some hidden channels.

    Raises:
        UnsupportedModel: its norms take away the mean over all channels.
    """
    if family.centres_stream:
        able = [name for name, other in FAMILIES.items() if not other.centres_stream]
        raise _refused(
            family,
            "norms take away a mean over all hidden channels, which fewer do not have",
            "axes",
            f"the hidden size shrinks in {_listed(able)}",
        )


def require_rotatable(family: Family) -> None:
    """Raise where the residual stream cannot be turned.

    Raises:
        UnsupportedModel: norms centre it, or weigh its channels where no projection reads them.
    """
    if not family.rotatable:
        able = [name for name, other in FAMILIES.items() if other.rotatable]
        raise _refused(
            family,
            "has norms that a rotated residual stream does not pass unchanged",
            "importance.kind",
            f"importance 'pca_energy' goes with {_listed(able)}",
        )


def require_sliceable(family: Family) -> None:
    """Raise where the residual stream cannot be turned for each block by itself.

    Raises:
        UnsupportedModel: as for `require_rotatable`, or its MLP has no one output projection.
    """
    require_rotatable(family)
    if not family.sliceable:
        able = [name for name, other in FAMILIES.items() if other.sliceable]
        raise _refused(
            family,
            "has no place for shortcuts between its blocks",
            "importance.rotation",
            f"rotation 'global', or one of {_listed(able)}",
        )


def _check_experts(recipe: Recipe, family: Family) -> None:
    if "mlp_block" in recipe.axes:
        raise _refused(family, "has no MLP block to take out", "axes", "axis 'expert'")
    if "intermediate" not in recipe.axes and "expert" not in recipe.axes:
        return
    if recipe.importance.kind not in _INSIDE_EXPERTS:
        raise _refused(
            family,
            f"shows no {recipe.importance.kind} importance inside its experts",
            "importance.kind",
            f"one of {_listed(_INSIDE_EXPERTS)}",
        )
    if recipe.compensation != "none":
        raise _refused(
            family,
            f"has experts, which {recipe.compensation} cannot repair",
            "compensation",
            "compensation 'none'",
        )


def _refused(family: Family, why: str, param: str, hint: str) -> UnsupportedModel:
    return UnsupportedModel(f"{family.model_type} {why}", param=param, hint=hint)


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names))
