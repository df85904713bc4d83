"""The file map names every module."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("api", "worker", "registry", "pruning", "espalier", "migrations", "bench")


def test_every_module_has_its_line_in_the_file_map() -> None:
    file_map = (ROOT / "docs" / "file-map.md").read_text()
    modules = [
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.name != "__init__.py" and path.parent.name != "versions"
    ]
    assert [module for module in modules if f"`{module}`" not in file_map] == []
