"""The demo's text: what every machine with the product has, namely its installed packages.

Two domains: `docs` (project descriptions and docstrings) and `code` (Python source). Packages take
turns in the order of their names, the files of each in the order of a hash, so that the same
environment gives the same corpus and no large package fills it alone.
"""

import ast
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import Distribution, distributions
from itertools import chain
from pathlib import Path

CHARACTERS_PER_TOKEN = 3.5
"""Of SmolLM2's tokenizer on this text, roughly; only the size of the corpus depends on it."""

_MIN_CHARACTERS, _MAX_CHARACTERS = 400, 3000
_MAX_FILE_BYTES = 200_000


def write_corpus(directory: Path, *, num_tokens: int) -> Path:
    """Write `docs.jsonl` and `code.jsonl`, together about `num_tokens` long, into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    packages = sorted(distributions(), key=lambda package: package.name.lower())
    characters = round(num_tokens * CHARACTERS_PER_TOKEN / 2)
    for domain, read in (("docs", _docs), ("code", _code)):
        documents = _take(_in_turns([read(package) for package in packages]), characters)
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents)
        (directory / f"{domain}.jsonl").write_text("".join(lines), encoding="utf-8")
    return directory


def _docs(package: Distribution) -> Iterator[str]:
    return chain(
        _pieces(package.metadata.json.get("description")), _from_files(package, _docstrings)
    )


def _code(package: Distribution) -> Iterator[str]:
    return _from_files(package, _source)


def _from_files(package: Distribution, read: Callable[[str], Iterable[str]]) -> Iterator[str]:
    """What `read` finds in the package's Python files, in the order of their hashed names."""
    names = [str(name) for name in package.files or () if name.suffix == ".py"]
    for name in sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest()):
        path = Path(str(package.locate_file(name)))
        if path.is_file() and path.stat().st_size <= _MAX_FILE_BYTES:
            yield from read(path.read_text(encoding="utf-8", errors="ignore"))


def _source(text: str) -> Iterator[str]:
    yield from list(_pieces(text))[:1]  # one piece of each file: more files rather than more of one


def _docstrings(text: str) -> Iterator[str]:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]
    yield from list(_pieces("\n\n".join(filter(None, found))))[:1]


def _pieces(text: object) -> Iterator[str]:
    """`text` cut at blank lines into documents of a few thousand characters; short ones dropped."""
    piece = ""
    for paragraph in str(text or "").split("\n\n"):
        if piece and len(piece) + len(paragraph) > _MAX_CHARACTERS:
            yield piece
            piece = ""
        piece += paragraph[:_MAX_CHARACTERS] + "\n\n"
    if len(piece) >= _MIN_CHARACTERS:
        yield piece


def _in_turns(sources: list[Iterator[str]]) -> Iterator[str]:
    while sources:
        left = []
        for source in sources:
            if (document := next(source, None)) is not None:
                left.append(source)
                yield document
        sources = left


def _take(documents: Iterable[str], characters: int) -> Iterator[str]:
    """Documents, each once, until they hold `characters`."""
    seen: set[str] = set()
    for document in documents:
        if characters <= 0:
            return
        if document not in seen:
            seen.add(document)
            characters -= len(document)
            yield document
