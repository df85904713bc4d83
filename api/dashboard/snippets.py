"""A job's request as one would write it elsewhere: for curl, Python and the command line. Pure."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_SIMPLE = ("model", "target", "data")


@dataclass(frozen=True)
class Snippet:
    """A text to copy."""

    id: str
    title: str
    text: str


def snippets(base_url: str, spec: Mapping[str, Any]) -> list[Snippet]:
    """The same request three times."""
    return [
        Snippet("as-curl", "curl", as_curl(base_url, spec)),
        Snippet("as-python", "Python", as_python(base_url, spec)),
        Snippet("as-cli", "Command line", as_cli(base_url, spec)),
    ]


def as_curl(base_url: str, spec: Mapping[str, Any]) -> str:
    """A request by curl; the key comes from the environment."""
    body = shlex.quote(json.dumps(spec, indent=2, ensure_ascii=False))
    return (
        f"curl {base_url}v1/jobs \\\n"
        '  -H "Authorization: Bearer $ESPALIER_API_KEY" \\\n'
        '  -H "Content-Type: application/json" \\\n'
        f"  -d {body}"
    )


def as_python(base_url: str, spec: Mapping[str, Any]) -> str:
    """A request by the client that users install."""
    return (
        "from espalier import Client\n\n"
        f"request = {_literal(spec)}\n\n"
        f"with Client({_literal(base_url.rstrip('/'))}) as client:  # reads ESPALIER_API_KEY\n"
        "    job = client.submit(request)\n"
        "    print(job.id)"
    )


def _literal(value: Any, depth: int = 1) -> str:
    """A JSON value as Python writes it, an item a line."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping) and value:
        items = [f"{_literal(key)}: {_literal(item, depth + 1)}" for key, item in value.items()]
    elif isinstance(value, list) and value:
        items = [_literal(item, depth + 1) for item in value]
    else:
        return repr(value)
    first, last = "[]" if isinstance(value, list) else "{}"
    inside = "".join(f"{'    ' * depth}{item},\n" for item in items)
    return f"{first}\n{inside}{'    ' * (depth - 1)}{last}"


def as_cli(base_url: str, spec: Mapping[str, Any]) -> str:
    """A request by the `espalier` command; what is more than three words goes into a file."""
    simple = [spec.get(name) for name in _SIMPLE]
    words = [shlex.quote(str(value)) for value in simple]
    rest = {name: value for name, value in spec.items() if name not in (*_SIMPLE, "name")}
    name = ["--name", shlex.quote(str(spec["name"]))] if spec.get("name") else []
    address = f"export ESPALIER_URL={shlex.quote(base_url.rstrip('/'))}\n"
    if not all(isinstance(value, str | int) for value in simple):
        # The words on the line win over the file; these have no short form.
        body = shlex.quote(json.dumps(spec, indent=2, ensure_ascii=False))
        return (
            f"{address}cat > request.json <<< {body}\n"
            "python -c 'import json; from espalier import Client; "
            'print(Client().submit(json.load(open("request.json"))).id)\''
        )
    if not rest:
        return address + " ".join(["espalier submit", *words, *name])
    body = shlex.quote(json.dumps(rest, indent=2, ensure_ascii=False))
    command = " ".join(["espalier submit", *words, *name, "--recipe recipe.json"])
    return f"{address}cat > recipe.json <<< {body}\n{command}"
