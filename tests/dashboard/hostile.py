"""Hostile strings in every place of the database where a user, a worker or a run can put text.

Not a list of such places: everything textual is taken over but what is named below, so a column
that is added tomorrow is hostile tomorrow. A job's request is made from the API's own schema.
"""

import itertools
import re
from collections.abc import Mapping
from typing import Any

from sqlalchemy import JSON, String, Table, select, update
from sqlalchemy.orm import Session

from registry.tables import Base, Job

PAYLOADS = (
    "<script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    "\"'><svg onload=window.pwned=1>",
    "javascript:window.pwned=1",
    "{{7*7}}${window.pwned=1}",
    "</title></textarea></script><script>window.pwned=1</script>",
    "' autofocus onfocus=window.pwned=1 x='",
    "<iframe srcdoc='<script>parent.pwned=1</script>'></iframe>",
    "<a href=javascript:window.pwned=1>x</a>",
    "<div hx-get='/sign-in' hx-trigger='load' hx-on:click='window.pwned=1'>",
    "--><!--<details open ontoggle=window.pwned=1>",
    "\u2028<math><mtext></p><style><img src=x onerror=window.pwned=1></style>",
)
NOT_FREE: Mapping[str, frozenset[str]] = {
    # Words of this program, checked by the database or compared in its code.
    "*": frozenset({"status", "level", "type", "kind", "stage", "phase", "queue", "outcome"}),
    "api_keys": frozenset({"prefix", "scopes"}),
    "evaluations": frozenset({"rows"}),
    "job_attempts": frozenset({"end_cause"}),
    "jobs": frozenset({"spec", "recipe", "pause_mode"}),  # made from the schema, below
    "metric_points": frozenset({"columns"}),
    "model_aliases": frozenset({"alias"}),  # `[A-Za-z][\w.-]*`, as is the name of a model
    "registered_models": frozenset({"name"}),
    "webhooks": frozenset({"secrets"}),
    "webhook_deliveries": frozenset({"event_type"}),
}
NOT_FREE_IN_JSON = frozenset({"status", "phase", "stage", "checkpoint", "allowed_actions"})
FREE_KEYS = frozenset({"weights", "losses", "metadata", "domains"})
"""Objects whose keys are names that users gave."""
_ID_OR_DIGEST = re.compile(r"(\w+_)?[0-9a-f]{32,64}")
OWN_WORDS = frozenset({"perplexity", "speed"})
"""Suites of this program; those of a recipe have names of their own."""


def take_over(session: Session, openapi: Mapping[str, Any]) -> None:
    """Replace every free text of every row; what was equal stays equal."""
    corpus = Corpus()
    for table in Base.metadata.sorted_tables:
        for row in session.execute(select(table)).mappings().all():
            changed = _changed(table, row, corpus)
            keys = [table.c[key.name] == row[key.name] for key in table.primary_key]
            if changed:
                session.execute(update(table).where(*keys).values(changed))
    for job in session.scalars(select(Job)):
        asked = hostile_request(openapi, corpus)
        job.spec, job.recipe = asked, {**job.recipe, **asked}


class Corpus:
    """The payloads one after the other; a text that was replaced before, by the same again."""

    def __init__(self) -> None:
        self._payloads = itertools.cycle(PAYLOADS)
        self._known: dict[str, str] = {}

    def __next__(self) -> str:
        return next(self._payloads)

    def instead_of(self, text: str) -> str:
        """The beginning of the text, then a payload."""
        return self._known.setdefault(text, f"{text[:12]} {next(self)}")


def _changed(table: Table, row: Mapping[Any, Any], corpus: Corpus) -> dict[str, Any]:
    fixed = NOT_FREE["*"] | NOT_FREE.get(table.name, frozenset())
    if table.name == "evaluations" and row["suite"] in OWN_WORDS:
        return {}
    found: dict[str, Any] = {}
    for column in table.columns:
        value = row[column.name]
        if value is None or column.name in fixed or column.foreign_keys or _is_id(value):
            continue
        if isinstance(column.type, JSON):
            found[column.name] = hostile(value, corpus, free_keys=column.name in FREE_KEYS)
        elif isinstance(column.type, String):
            found[column.name] = corpus.instead_of(value)
    return found


def _is_id(value: object) -> bool:
    return isinstance(value, str) and bool(_ID_OR_DIGEST.fullmatch(value))


def hostile(value: Any, corpus: Corpus, *, free_keys: bool = False) -> Any:
    """A JSON value with every text in it replaced."""
    if isinstance(value, str):
        return corpus.instead_of(value)
    if isinstance(value, list):
        return [hostile(item, corpus) for item in value]
    if isinstance(value, Mapping):
        return {
            corpus.instead_of(key) if free_keys else key: item
            if key in NOT_FREE_IN_JSON or _is_id(item)
            else hostile(item, corpus, free_keys=key in FREE_KEYS)
            for key, item in value.items()
        }
    return value


# --- a request by the schema ----------------------------------------------------------------------


def hostile_request(openapi: Mapping[str, Any], corpus: Corpus) -> dict[str, Any]:
    """A request for a job in which every text that no pattern binds is hostile."""
    schemas = openapi["components"]["schemas"]
    found = _instance({"$ref": "#/components/schemas/JobCreate"}, schemas, corpus, frozenset())
    assert isinstance(found, dict)
    return found


def _instance(
    schema: Mapping[str, Any],
    schemas: Mapping[str, Any],
    corpus: Corpus,
    within: frozenset[str],
) -> Any:
    """A value of all alternatives of a schema at once; None where no text in it is free."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        known = name in within
        return None if known else _instance(schemas[name], schemas, corpus, within | {name})
    parts = [
        _instance(one, schemas, corpus, within)
        for word in ("anyOf", "oneOf", "allOf")
        for one in schema.get(word, ())
    ]
    for name, below in schema.get("properties", {}).items():
        parts.append({name: found} if (found := _instance(below, schemas, corpus, within)) else {})
    if isinstance(schema.get("additionalProperties"), Mapping):
        below = _instance(schema["additionalProperties"], schemas, corpus, within)
        parts.append({next(corpus): 1.0 if below is None else below})
    if schema.get("type") == "array":
        below = _instance(schema.get("items", {}), schemas, corpus, within)
        parts.append(None if below is None else [below])
    parts.append(_text(schema, corpus))
    return _united(parts)


def _text(schema: Mapping[str, Any], corpus: Corpus) -> str | None:
    """A hostile string that the schema allows; None where its pattern allows none."""
    if schema.get("type") != "string" or {"enum", "const", "format"} & set(schema):
        return None
    payload = next(corpus)
    bare = re.sub(r"[\s/\\]", "", payload)
    shapes = (payload, f"https://example.com/?{bare}", f"{bare}.gguf")
    pattern = schema.get("pattern", "")
    return next((shape for shape in shapes if re.search(pattern, shape)), None)


def _united(parts: list[Any]) -> Any:
    """Of alternatives, all fields of the objects, else the first that has free text."""
    objects = [part for part in parts if isinstance(part, dict) and part]
    if objects:
        return {key: value for part in reversed(objects) for key, value in part.items()}
    return next((part for part in parts if part), None)
