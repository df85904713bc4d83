"""Which model a recipe prunes."""

from typing import Annotated, Any, Literal

from pydantic import Field

from pruning.recipe_parts.part import Part


class HubModel(Part):
    """A model repository on a hub; `revision` is pinned to a commit when the run starts."""

    source: Literal["hub"] = "hub"
    id: str = Field(
        pattern=r"^[\w.-]+(/[\w.-]+)?$", max_length=200, description="Repository, `org/name`."
    )
    revision: str = Field(
        "main", pattern=r"^[\w./-]+$", max_length=200, description="Branch, tag or commit."
    )
    credential: str | None = Field(
        None,
        pattern=r"^cred_[0-9a-f]{32}$",
        description="Id of a stored credential for gated models.",
    )


class PathModel(Part):
    """A model directory, or one GGUF file in it, on the worker's own disk."""

    source: Literal["path"] = "path"
    path: str = Field(min_length=1, max_length=4096, description="Directory, absolute.")
    gguf_file: str | None = Field(
        None, pattern=r"^[^/\\]+\.gguf$", max_length=255, description="Name of the GGUF file in it."
    )


ModelSource = Annotated[HubModel | PathModel, Field(discriminator="source")]


def parse_model(text: str) -> dict[str, Any]:
    """`org/name`, `org/name@revision`, `/a/directory` or `/a/model.gguf` as a long form."""
    if text.startswith("/"):
        if text.endswith(".gguf"):
            directory, _, file_name = text.rpartition("/")
            return {"source": "path", "path": directory or "/", "gguf_file": file_name}
        return {"source": "path", "path": text}
    repository, _, revision = text.partition("@")
    return {"source": "hub", "id": repository, **({"revision": revision} if revision else {})}
