"""The page on faults names tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_fault_on_the_page_has_its_test() -> None:
    page = (ROOT / "docs/faults.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ")][1:]
    assert rows
    assert not [row for row in rows if "`test_" not in row]
    named = set(re.findall(r"`(test_\w+)`", "\n".join(rows)))
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)\(", path.read_text())
    }
    assert named <= defined
