"""Which directories of the worker's disk a request may name."""

from collections.abc import Iterable, Iterator

from api.errors import Problem
from pruning.recipe import Recipe
from pruning.recipe_parts.data import PathData
from pruning.recipe_parts.model import PathModel
from registry.settings import Settings


def refuse_forbidden_paths(recipe: Recipe, settings: Settings) -> None:
    """Refuse `path` models and data outside the operator's roots.

    Raises:
        Problem: 422 `path_forbidden`, naming the field and the roots.
    """
    refuse_forbidden(_paths(recipe), settings)


def refuse_forbidden(paths: Iterable[tuple[str, str]], settings: Settings) -> None:
    """Refuse paths outside the operator's roots, each given with the field that names it.

    Raises:
        Problem: 422 `path_forbidden`, naming the field and the roots.
    """
    for param, path in paths:
        if "\0" in path or not settings.allows_path(path):
            roots = [str(root) for root in settings.allowed_paths]
            allowed = ", ".join(roots) or "none: the operator has allowed no directory"
            raise Problem(
                "path_forbidden",
                f"{param}: {path!r} is not under an allowed root ({allowed})",
                param=param,
                extensions={"allowed_roots": roots},
            )


def _paths(recipe: Recipe) -> Iterator[tuple[str, str]]:
    if isinstance(recipe.model, PathModel):
        yield "model.path", recipe.model.path
    for index, model in enumerate(recipe.evaluation.compare_with):
        if isinstance(model, PathModel):
            yield f"evaluation.compare_with.{index}.path", model.path
    for param, source in recipe.sources():
        if isinstance(source, PathData):
            yield f"{param}.path", source.path
