"""docker-compose.yml and the Dockerfile, as far as a machine without an engine can tell."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose
from typer.main import get_command

from espalier.up import services
from registry.__main__ import app as registry_app
from registry.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("migrate", "api", "sweeper", "worker-cpu", "worker-gpu")


def test_the_file_keeps_to_the_compose_specification() -> None:
    text = re.sub(r"\$\{\w+:-([^}]*)}", r"\1", (ROOT / "docker-compose.yml").read_text())
    merged = yaml.safe_load(re.sub(r"\$\{\w+:\?[^}]*}", "filled", text))
    compose = PyCompose.from_yaml(yaml.safe_dump(merged))
    compose.validate()
    assert set(compose.service_names()) == set(SERVICES)


def test_what_services_refer_to_exists() -> None:
    for service in SERVICES.values():
        assert set(service.get("depends_on", {})) <= set(SERVICES)
        named = {volume.partition(":")[0] for volume in service["volumes"] if volume[0] != "$"}
        assert named <= set(COMPOSE["volumes"])


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_hardened(name: str) -> None:
    service = SERVICES[name]
    assert service["init"] is True
    assert service["read_only"] is True
    assert service["tmpfs"]
    assert "no-new-privileges:true" in service["security_opt"]


@pytest.mark.parametrize("name", sorted(set(SERVICES) - {"migrate"}))
def test_every_lasting_service_has_a_health_check_and_time_to_stop(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"]
    assert SERVICES[name]["stop_grace_period"]
    assert SERVICES[name]["restart"] == "unless-stopped"


def test_passwords_are_required_and_have_no_default() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    assert re.findall(r"\$\{\w*PASSWORD(?!:\?)[^}]*}", text) == []
    assert {"POSTGRES_PASSWORD", "REDIS_PASSWORD"} == set(re.findall(r"\${(\w*PASSWORD):\?", text))
    example = (ROOT / ".env.example").read_text()
    assert re.findall(r"^\w*PASSWORD=.+$", example, re.MULTILINE) == []


def test_only_the_api_is_published_and_only_on_loopback() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"api": ["${ESPALIER_PUBLISH:-127.0.0.1:8000}:8000"]}


def test_nothing_of_ours_starts_before_the_database_is_migrated() -> None:
    assert SERVICES["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    for name in set(OURS) - {"migrate"}:
        condition = SERVICES[name]["depends_on"]["migrate"]["condition"]
        assert condition == "service_completed_successfully"


def test_the_environment_is_made_of_real_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_PASSWORD", "secret")
    for name in OURS:
        environment = {k: _filled(v) for k, v in SERVICES[name]["environment"].items()}
        known = {f"ESPALIER_{field.upper()}" for field in Settings.model_fields}
        assert set(environment) <= known
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        settings = Settings()
        assert settings.database_url.startswith("postgresql+psycopg://espalier:filled@postgres")
        assert settings.allowed_paths == (Path("/models"),)


def _filled(value: str) -> str:
    return re.sub(r"\$\{\w+:\?[^}]*}", "filled", value)


def test_commands_are_those_that_up_starts() -> None:
    """So that what the embedded mode tests is what the containers run."""
    by_name = {service.name: service for service in services("0.0.0.0", 8000, stop_seconds=1)}
    for compose_name, up_name in (("worker-cpu", "worker"), ("sweeper", "sweeper"), ("api", "api")):
        compose = _normal(SERVICES[compose_name]["command"])
        assert _without_timeouts(compose) == _without_timeouts(_normal(by_name[up_name].command))


def _normal(command: Any) -> list[str]:
    words = [part for word in command for part in str(word).split("=", 1)]
    if words[0] not in ("uvicorn", "celery"):
        return words[1:]  # python
    return ["-m", *words]


def _without_timeouts(words: list[str]) -> list[str]:
    words = words[1:] if words[0].endswith("python") else words
    if "--timeout-graceful-shutdown" in words:
        at = words.index("--timeout-graceful-shutdown")
        words = words[:at] + words[at + 2 :]
    return words


def test_the_images_run_the_same_commands() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
    commands = [json.loads(line[4:]) for line in re.findall(r"^CMD .*$", dockerfile, re.MULTILINE)]
    assert [_normal(c) for c in commands] == [
        _normal(SERVICES["worker-cpu"]["command"]),
        _normal(SERVICES["api"]["command"]),
    ]


def test_the_images_hold_every_package_and_no_root() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    for package in ("api", "espalier", "migrations", "pruning", "registry", "worker"):
        assert f"COPY {package} {package}" in dockerfile
        assert f"!{package}" in (ROOT / ".dockerignore").read_text().splitlines()
    assert dockerfile.count("USER espalier") == 2
    assert "pip install -c constraints.txt" in dockerfile


def test_every_target_that_compose_builds_exists() -> None:
    stages = set(
        re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    )
    targets = {SERVICES[name]["build"]["target"] for name in OURS}
    assert targets <= stages


def test_registry_commands_exist() -> None:
    commands = get_command(registry_app).commands  # type: ignore[attr-defined]
    used = [SERVICES["migrate"]["command"], SERVICES["sweeper"]["command"]]
    used.append(SERVICES["sweeper"]["healthcheck"]["test"][1:])
    used += [shlex.split("python -m registry create-key")]
    for words in used:
        assert words[:3] == ["python", "-m", "registry"]
        options = {name for option in commands[words[3]].params for name in option.opts}
        assert set(words[4:]) <= options
