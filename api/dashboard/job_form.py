"""What the form that makes a job means as a request, and whose error is whose. Pure."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from api.dashboard.form_fields import ADVANCED, PLAIN

_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE]-?\d+)?")
_NAMED_SOURCE = re.compile(r"(?P<name>[\w.-]{1,64})\s*=\s*(?P<source>\S.*)")
_SOMEWHERE = {"kind": "hub", "id": "not-named-yet"}


@dataclass(frozen=True)
class Filled:
    """What stands in the form, and what was wrong with it: messages by field, "" for the rest."""

    values: Mapping[str, str] = field(default_factory=dict)
    chosen: Mapping[str, Sequence[str]] = field(default_factory=dict)
    errors: Mapping[str, Sequence[str]] = field(default_factory=dict)


def read_form(pairs: Sequence[tuple[str, str]]) -> Filled:
    """The fields of a posted form; what it does not have is left out."""
    values = {name: text for name, text in pairs if name in PLAIN or name in ADVANCED}
    chosen: dict[str, list[str]] = {}
    for name, text in pairs:
        if name in ADVANCED and ADVANCED[name].kind == "choices":
            chosen.setdefault(name, []).append(text)
    return Filled(values={k: v for k, v in values.items() if k not in chosen}, chosen=chosen)


def request_of(filled: Filled, *, without_data: bool = False) -> dict[str, Any]:
    """The request that the form means; `without_data`, of text that is not named yet.

    Raises:
        ValueError: the JSON beside the fields is none.
    """
    values = {name: text.strip() for name, text in filled.values.items() if text.strip()}
    request: dict[str, Any] = {
        name: values[name] for name in ("name", "model", "method") if name in values
    }
    if "target" in values:
        request["target"] = _target(values["target"], values.get("target_unit", "parameters"))
    data = _data(values) or ({"train": _SOMEWHERE} if without_data else None)
    if data is not None:
        request["data"] = data
    _put_advanced(request, values, filled.chosen)
    return _merged(request, _extra(values.get("extra", "")))


def _put_advanced(
    request: dict[str, Any], values: Mapping[str, str], chosen: Mapping[str, Sequence[str]]
) -> None:
    for name, one in ADVANCED.items():
        if name in values:
            _put(request, name, _typed(values[name]) if one.kind == "number" else values[name])
        elif chosen.get(name):
            _put(request, name, list(chosen[name]))


def _target(text: str, unit: str) -> Any:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    sizes = [_size(part, unit) for part in parts]
    return sizes[0] if len(sizes) == 1 else sizes


def _size(text: str, unit: str) -> Any:
    if unit == "sparsity":
        return text if text.endswith("%") else f"{text}%"
    if unit == "size_bytes":
        number = _typed(text)
        return {"size_bytes": number if isinstance(number, str) else round(number * 1e6)}
    return text


def _data(values: Mapping[str, str]) -> Any:
    lines = [line.strip() for line in values.get("data", "").splitlines() if line.strip()]
    documents = [part for part in re.split(r"\n\s*\n", values.get("data_text", "")) if part.strip()]
    if len(lines) == 1 and not documents and not _NAMED_SOURCE.fullmatch(lines[0]):
        return lines[0]
    domains = [_domain(line, number) for number, line in enumerate(lines, 1)]
    if documents:
        domains.append({"name": "pasted", "source": {"kind": "inline", "documents": documents}})
    return {"train": domains} if domains else None


def _domain(line: str, number: int) -> dict[str, Any]:
    match = _NAMED_SOURCE.fullmatch(line)
    if match:
        return {"name": match["name"], "source": match["source"]}
    return {"name": f"domain-{number}", "source": line}


def _typed(text: str) -> int | float | str:
    if not _NUMBER.fullmatch(text):
        return text
    number = float(text)
    return int(number) if number.is_integer() and "." not in text else number


def _put(request: dict[str, Any], name: str, value: Any) -> None:
    *path, last = name.split(".")
    for part in path:
        below = request.get(part)
        if not isinstance(below, dict):
            # `data` may stand there as a plain string: the text to train on.
            below = {} if below is None else {"train": below}
        request[part] = below
        request = below
    request[last] = value


def _extra(text: str) -> Mapping[str, Any]:
    if not text:
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"this is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError('this is not a JSON object, such as {"seed": 1}')
    return found


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(below, value) if both else value  # type: ignore[arg-type]
    return merged


# --- from a request to the form -------------------------------------------------------------------


def fill(spec: Mapping[str, Any]) -> Filled:
    """A form that means this request; what has no field of its own stands in `extra`."""
    rest = json.loads(json.dumps(spec))
    values: dict[str, str] = {}
    chosen: dict[str, Sequence[str]] = {}
    for name in ("name", "model", "method", "target", "data"):
        if isinstance(rest.get(name), str | int):
            values[name] = str(rest.pop(name))
    for name, one in ADVANCED.items():
        value = _take(rest, name, several=one.kind == "choices")
        if isinstance(value, list):
            chosen[name] = [str(item) for item in value]
        elif value is not None:
            values[name] = str(value)
    if rest:
        values["extra"] = json.dumps(rest, indent=2, ensure_ascii=False)
    return Filled(values=values, chosen=chosen)


def _take(spec: dict[str, Any], name: str, *, several: bool) -> Any:
    head, _, below = name.partition(".")
    if below:
        part = spec.get(head)
        if not isinstance(part, dict):
            return None
        taken = _take(part, below, several=several)
        if not part:
            del spec[head]
        return taken
    wanted = list if several else (str, int, float)
    return spec.pop(head) if isinstance(spec.get(head), wanted) else None


# --- errors ---------------------------------------------------------------------------------------


def owner_of(param: str | None) -> str:
    """The field that an error's `param` belongs to; "" for those of no field of this form."""
    parts = (param or "").split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if name in ADVANCED or name in PLAIN:
            return name
    return ""
