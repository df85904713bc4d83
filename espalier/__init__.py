"""What users import: `from espalier import Client, AsyncClient`, or `import espalier.loading`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from espalier.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]


def __getattr__(name: str) -> Any:
    # Not until it is asked for: who only opens a checkpoint needs nothing that speaks HTTP.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("espalier.client"), name)
