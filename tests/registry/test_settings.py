"""Settings: all under one directory unless said otherwise, and no way out of allowed roots."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from registry.settings import Settings


def test_everything_lies_under_the_data_directory(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    assert settings.database_url == f"sqlite:///{tmp_path}/espalier.db"
    assert settings.broker_url == f"filesystem://{tmp_path}/broker"
    assert settings.artifacts_url == f"file://{tmp_path}/artifacts"


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPALIER_DATABASE_URL", "postgresql+psycopg://u:secret@h/d")
    settings = Settings()
    assert settings.database_url.endswith("@h/d")
    assert "secret" not in repr(settings)


def test_only_allowed_roots_are_allowed(tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (allowed / "link").symlink_to(tmp_path)
    settings = Settings(data_dir=tmp_path, allowed_paths=(allowed,))
    assert settings.allows_path(str(allowed / "model"))
    for path in (tmp_path, allowed / ".." / "x", allowed / "link" / "x", f"{allowed}-not/x"):
        assert not settings.allows_path(str(path))
    assert not Settings(data_dir=tmp_path).allows_path(str(allowed))


def test_a_relative_root_is_refused() -> None:
    with pytest.raises(ValidationError, match="absolute"):
        Settings(allowed_paths=(Path("models"),))
