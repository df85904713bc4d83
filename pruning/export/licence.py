"""Under which licence a pruned model is: its base model's, as that model's card says."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCard, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from pruning.recipe_parts.model import HubModel, ModelSource

_CARD = "README.md"
_TEXTS = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


@dataclass(frozen=True)
class Licence:
    """The card's identifier (None: it says none), name and link, and the files that spell it out.

    `identifier` is the hub's, such as `apache-2.0`; `other` has a name and a link.
    """

    identifier: str | None = None
    name: str | None = None
    link: str | None = None
    texts: tuple[Path, ...] = ()


def read_licence(source: ModelSource, revision: str | None) -> Licence:
    """The licence of a base model; nothing is known of it where its card cannot be had."""
    if not isinstance(source, HubModel):
        return _read(Path(source.path))
    try:
        snapshot = snapshot_download(
            source.id, revision=revision or source.revision, allow_patterns=[_CARD, *_TEXTS]
        )
    except (OSError, HfHubHTTPError, HFValidationError):
        return Licence()
    return _read(Path(snapshot))


def _read(directory: Path) -> Licence:
    texts = sorted({p for pattern in _TEXTS for p in directory.glob(pattern) if p.is_file()})
    card = directory / _CARD
    if not card.is_file():
        return Licence(texts=tuple(texts))
    try:
        said = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, TypeError):
        return Licence(texts=tuple(texts))
    identifier = said.get("license")
    return Licence(
        identifier=identifier if isinstance(identifier, str) else None,
        name=said.get("license_name"),
        link=said.get("license_link"),
        texts=tuple(texts),
    )


def copy_texts(licence: Licence, directory: Path) -> None:
    """Put the licence's own files beside the model."""
    for text in licence.texts:
        shutil.copyfile(text, directory / text.name)
