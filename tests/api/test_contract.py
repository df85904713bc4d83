"""Schemathesis finds nothing: a few operations here, all of them by `python -m bench.contract`."""

import os
from pathlib import Path

import pytest

from bench.contract import furnished, run, summary
from registry.settings import Settings

EXAMPLES = int(os.environ.get("ESPALIER_TEST_EXAMPLES", "3"))
# Named, so that the gate asks the same each time; `python -m bench.contract` need not.
SEED = int(os.environ.get("ESPALIER_TEST_SEED", "1"))
INCLUDED = os.environ.get("ESPALIER_TEST_OPERATIONS", "^/v1/(webhooks|credentials)$|/pause$")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_every_answer_is_as_documented(settings: Settings, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    with furnished(settings, tmp_path) as (url, holder, ids):
        done = run(
            url,
            holder,
            report=report,
            max_examples=EXAMPLES,
            phases=("coverage", "fuzzing"),
            include=INCLUDED,
            seed=SEED,
            ids=ids,
        )
    found = summary(report)
    assert found["operations"] >= 5
    assert (found["findings"], found["errors"]) == ([], []), done.stdout
