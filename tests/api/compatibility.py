"""What a client written for one OpenAPI document would miss in another."""

from collections.abc import Iterator, Mapping
from typing import Any

Document = Mapping[str, Any]
_METHODS = frozenset({"get", "head", "post", "put", "patch", "delete"})


def breaking_changes(old: Document, new: Document) -> Iterator[str]:
    """Every way in which `new` breaks what `old` promised; additions break nothing."""
    for path, operations in old["paths"].items():
        for method in _METHODS & operations.keys():
            name = f"{method.upper()} {path}"
            offered = new["paths"].get(path, {}).get(method)
            if offered is None:
                yield f"{name}: is gone"
                continue
            yield from _parameters(name, operations[method], offered)
            yield from _answers(name, operations[method], offered)
            yield from _bodies(name, operations[method], offered)
    schemas, sent = new["components"]["schemas"], _sent_by_clients(old)
    for name, schema in old["components"]["schemas"].items():
        if name not in schemas:
            yield f"{name}: is gone"
        else:
            yield from _fields(name, schema, schemas[name], sent=name in sent)


def _sent_by_clients(document: Document) -> set[str]:
    """The schemas that request bodies are made of; all others are only answered."""
    schemas = document["components"]["schemas"]
    todo: list[Any] = [
        operations[method].get("requestBody")
        for operations in document["paths"].values()
        for method in _METHODS & operations.keys()
    ]
    found: set[str] = set()
    while todo:
        part = todo.pop()
        if isinstance(part, list):
            todo += part
        elif isinstance(part, dict):
            name = str(part.get("$ref", "")).rpartition("/")[2]
            if name and name not in found:
                found.add(name)
                todo.append(schemas[name])
            todo += part.values()
    return found


def _parameters(name: str, old: Document, new: Document) -> Iterator[str]:
    def by_name(operation: Document) -> dict[tuple[str, str], Document]:
        return {(one["in"], one["name"]): one for one in operation.get("parameters", ())}

    before, after = by_name(old), by_name(new)
    for key in before:
        if key not in after:
            yield f"{name}: the {key[0]} parameter {key[1]} is gone"
        elif (was := _types(before[key]["schema"])) - (now := _types(after[key]["schema"])):
            yield f"{name}: the parameter {key[1]} was {sorted(was)}, is {sorted(now)}"
    for key, parameter in after.items():
        if parameter.get("required") and not before.get(key, {}).get("required"):
            yield f"{name}: the {key[0]} parameter {key[1]} is needed now"


def _answers(name: str, old: Document, new: Document) -> Iterator[str]:
    for status, answer in old["responses"].items():
        if not status.startswith("2"):
            continue
        if status not in new["responses"]:
            yield f"{name}: no longer answers {status}"
            continue
        was, now = (_reference(one) for one in (answer, new["responses"][status]))
        if was != now:
            yield f"{name}: answered {was}, answers {now}"


def _bodies(name: str, old: Document, new: Document) -> Iterator[str]:
    was, now = old.get("requestBody", {}), new.get("requestBody", {})
    if now.get("required") and not was.get("required"):
        yield f"{name}: needs a body now"
    for media_type in was.get("content", {}).keys() - now.get("content", {}).keys():
        yield f"{name}: takes no {media_type} any more"


def _reference(answer: Document) -> str | None:
    content = answer.get("content", {}).get("application/json", {})
    reference = content.get("schema", {}).get("$ref")
    return reference.rpartition("/")[2] if reference else None


def _fields(name: str, old: Document, new: Document, *, sent: bool) -> Iterator[str]:
    after = new.get("properties", {})
    for field, schema in old.get("properties", {}).items():
        if field not in after:
            yield f"{name}.{field}: is gone"
            continue
        was, now = _types(schema), _types(after[field])
        if (was - now) if sent else (now - was):
            yield f"{name}.{field}: was {sorted(was)}, is {sorted(now)}"
        lost = set(_values(schema)) - set(_values(after[field]))
        if lost and sent:
            yield f"{name}.{field}: takes no {sorted(map(str, lost))} any more"
    if sent:
        for field in set(new.get("required", ())) - set(old.get("required", ())):
            yield f"{name}.{field}: is needed now"


def _types(schema: Document) -> set[str]:
    """The kinds of values of a schema: JSON types, and the names of objects."""
    if "$ref" in schema:
        return {schema["$ref"].rpartition("/")[2]}
    forms = [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
    if forms:
        return set().union(*map(_types, forms))
    kind = schema.get("type", "anything")
    return set(kind) if isinstance(kind, list) else {kind}


def _values(schema: Document) -> Iterator[Any]:
    yield from schema.get("enum", ())
    for form in schema.get("anyOf", ()):
        yield from _values(form)
