"""The `espalier` command against a running service: what it prints and how it exits."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from espalier.cli import app
from espalier.connection import read_key
from tests.e2e.stack import Up, tiny_request, wait_for_success
from tests.servers import free_port


@pytest.fixture(autouse=True)
def environment(up: Up, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in another terminal of the machine that `up` runs on."""
    monkeypatch.setenv("ESPALIER_DATA_DIR", str(up.data_dir))


def espalier(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


@pytest.fixture(scope="module")
def job_id(up: Up, inputs: tuple[Path, Path]) -> str:
    """A job that has succeeded."""
    return wait_for_success(up.client, up.client.submit(tiny_request(*inputs)).id).id


def test_submit_and_watch_follow_a_job_to_its_end(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    model, text = inputs
    extra = tiny_request(model, text)
    (tmp_path / "recipe.json").write_text(json.dumps(extra))
    options = ("--recipe", str(tmp_path / "recipe.json"), "--name", "watched", "--watch")
    result = espalier("submit", str(model), "30%", str(text), *options)
    assert result.exit_code == 0, result.output
    assert "status succeeded" in result.output
    assert "perplexity" in result.output
    assert "increment 4: checkpoint of" in result.output


def test_every_command_that_reads_has_json(job_id: str) -> None:
    shown = json.loads(espalier("show", job_id, "--json").stdout)
    assert (shown["id"], shown["status"]) == (job_id, "succeeded")
    assert job_id in [job["id"] for job in json.loads(espalier("list", "--json").stdout)]
    increments = json.loads(espalier("checkpoints", job_id, "--json").stdout)
    assert [item["increment"] for item in increments] == [1, 2, 3, 4]
    assert json.loads(espalier("watch", job_id, "--json").stdout)["id"] == job_id


def test_download_puts_a_verified_checkpoint_into_a_directory(job_id: str, tmp_path: Path) -> None:
    result = espalier("download", job_id, str(tmp_path / "model"))
    assert result.exit_code == 0, result.output
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert not (tmp_path / "model" / "training_state").exists()


def test_people_get_tables(job_id: str) -> None:
    assert "succeeded" in espalier("list").output
    assert "target_reached" in espalier("show", job_id).output
    assert "float32" in espalier("checkpoints", job_id).output


def test_the_key_of_this_machine_can_be_shown(up: Up) -> None:
    assert espalier("keys", "show").output.strip() == read_key(up.data_dir)


def test_a_refused_request_exits_3_and_says_why(job_id: str) -> None:
    result = espalier("cancel", job_id)
    assert result.exit_code == 3
    assert "409" in result.stderr
    assert espalier("show", "job_" + "0" * 32).exit_code == 3
    result = espalier("submit", "/no/such/model", "30%", "/no/such/text")
    assert result.exit_code == 3
    assert "model" in result.stderr


def test_a_wrong_key_exits_4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPALIER_API_KEY", "pk_wrong")
    assert espalier("list").exit_code == 4


def test_an_absent_server_exits_5(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPALIER_URL", f"http://127.0.0.1:{free_port()}")
    result = espalier("list")
    assert result.exit_code == 5
    assert "refused" in result.stderr


def test_a_cancelled_job_exits_7(up: Up, inputs: tuple[Path, Path]) -> None:
    job = up.client.submit(tiny_request(*inputs, num_tokens=500_000))
    assert espalier("cancel", job.id).exit_code == 0
    assert espalier("watch", job.id).exit_code == 7
