import gzip
import json
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from pruning.data.sources import ReadReport, expand_domains, read_documents
from pruning.errors import InvalidData
from pruning.recipe_parts.data import Domain, InlineData, PathData

DOCUMENTS = ["first page", "second\npage", "dritte Seite: ü"]
LINES = "".join(json.dumps({"text": document}) + "\n" for document in DOCUMENTS).encode()


def read(path: Path, **options: str) -> list[str]:
    return list(read_documents(PathData(path=str(path), **options), ReadReport()))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("a.jsonl.gz", gzip.compress(LINES)),
        ("a.jsonl.zst", zstandard.compress(LINES)),
    ],
    ids=["plain", "gzip", "zstandard"],
)
def test_json_lines_read_the_same_however_compressed(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) == DOCUMENTS


def test_parquet_reads_the_named_column(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": DOCUMENTS, "id": [1, 2, 3]}), path)
    assert read(path, text_field="body") == DOCUMENTS
    with pytest.raises(InvalidData) as caught:
        read(path)
    assert caught.value.hint is not None
    assert "body, id" in caught.value.hint


def test_plain_text_becomes_pages_and_loses_no_line(tmp_path: Path) -> None:
    blocks = [f"block {i}: " + "words " * 100 for i in range(50)]
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(blocks))
    pages = read(path)
    assert len(pages) > 3
    assert "".join(pages).replace("\n", "") == "".join(blocks)


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with path.open("w") as file:
        for _ in range(12):
            file.write(("no blank line in a file of twelve megabytes\n" * 24)[:1023] * 1024 + "\n")
    tracemalloc.start()
    num_characters = sum(
        len(document) for document in read_documents(PathData(path=str(path)), ReadReport())
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_characters == path.stat().st_size
    assert peak < 6e6


def test_inline_documents_are_read_as_they_are() -> None:
    source = InlineData(documents=("one", "", "two"))
    assert list(read_documents(source, ReadReport())) == ["one", "two"]


def test_malformed_rows_are_counted_with_examples(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n{broken\n{"body": "x"}\n{"text": 7}\n\xff\xfe\n')
    report = ReadReport()
    assert list(read_documents(PathData(path=str(path)), report)) == ["good"]
    assert (report.num_rows, report.num_malformed) == (5, 4)
    assert "no field 'text' among body" in report.summary()


def test_more_than_one_percent_malformed_is_an_error() -> None:
    report = ReadReport(num_rows=2000)
    for _ in range(20):
        report.malformed("not JSON")
    report.check("web")
    report.malformed("not JSON")
    with pytest.raises(InvalidData, match="domain web: 21 of 2000 rows"):
        report.check("web")


def test_each_file_of_a_directory_is_a_domain(tmp_path: Path) -> None:
    for name in ("wiki.jsonl.gz", "code.txt", "arxiv.valid.jsonl", "notes.pdf"):
        (tmp_path / name).touch()
    domain = Domain(name="train", source=PathData(path=str(tmp_path)), weight=2.0)
    expanded = expand_domains((domain,))
    assert [d.name for d in expanded] == ["arxiv.valid", "code", "wiki"]
    assert {d.group_weight for d in expanded} == {2.0}


def test_a_directory_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="no file with text"):
        expand_domains((Domain(name="train", source=PathData(path=str(tmp_path))),))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl.gz", gzip.compress(LINES)[:-9]),
        ("a.jsonl.zst", b"no frame at all"),
        ("a.parquet", b"PAR1 but no table"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidData, match=f"{name}: cannot be read"):
        read(tmp_path / name)


def test_a_missing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="no such file"):
        read(tmp_path / "absent.jsonl")
