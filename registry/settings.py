"""The settings of the service processes, read once at the edge from `ESPALIER_*` and passed on.

The recipe says what a job does; these say where things are kept and how patient the machinery is.
"""

import os
import sys
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from registry.installation import installation_secret


class Settings(BaseSettings):
    """Everything an operator may set. URLs that are absent live under `data_dir`."""

    model_config = SettingsConfigDict(env_prefix="ESPALIER_", frozen=True, extra="ignore")

    data_dir: Path = Path(".espalier")
    database_url: str = Field("", repr=False, description="sqlite:///… or postgresql+psycopg://…")
    broker_url: str = Field("", repr=False, description="filesystem:///directory or redis://…")
    artifacts_url: str = Field("", repr=False, description="file:///directory")
    allowed_paths: tuple[Path, ...] = Field(
        (), description="Directories that `path` models and data may lie under; none by default."
    )

    lease_seconds: float = Field(60.0, gt=0)
    slice_seconds: float = Field(
        1200.0, ge=0, description="A slice ends at the next boundary after."
    )
    stop_grace_seconds: float = Field(
        120.0, ge=0, description="From SIGTERM to SIGKILL of a child."
    )
    stall_seconds: float = Field(900.0, gt=0, description="A child silent for longer is killed.")
    database_patience_seconds: float = Field(600.0, ge=0, description="Retrying through an outage.")
    database_answer_seconds: float = Field(
        35.0, gt=0, description="A Postgres silent for longer is given up; it stops itself at 30."
    )
    backoff_seconds: float = Field(15.0, ge=0, description="After a retryable failure, doubling.")
    max_backoff_seconds: float = Field(900.0, ge=0)

    sweep_seconds: float = Field(0.25, gt=0, description="Pause between two sweeps.")
    rehint_seconds: float = Field(
        5.0, gt=0, description="A queued job this long unheard is hinted."
    )
    worker_timeout_seconds: float = Field(
        60.0, gt=0, description="A worker silent for longer is lost."
    )
    session_secret: SecretStr | None = Field(
        None,
        repr=False,
        min_length=16,
        description="What this installation signs with; the same in every process. "
        "Default: made once and kept in `data_dir`.",
    )
    webhook_private_hosts: tuple[str, ...] = Field(
        (), description="`host:port` pairs webhooks may call though private, by plain http too."
    )
    idempotency_hours: float = Field(24.0, gt=0)
    upload_hours: float = Field(
        48.0, gt=0, description="An upload that is not whole by then is given up."
    )
    collect_seconds: float = Field(5.0, gt=0, description="Between two rounds of collecting.")
    garbage_age_seconds: float = Field(
        3600.0, ge=0, description="Files that were never committed live this long."
    )
    resume_free_bytes: int = Field(
        2 << 30, ge=0, description="Free space at which a job paused as storage_full goes on."
    )
    storage_reserve_bytes: int = Field(256 << 20, ge=0, description="Free space never used.")

    log_format: Literal["console", "json"] = "console"

    queues: tuple[str, ...] = Field(
        (),
        description="Queues a worker serves, of `default`, `cpu`, `gpu`, `gpus:2`, …; "
        "by default those that its machine can.",
    )
    worker_name: str = Field("", description="Name of this worker; default host and process.")
    child_command: tuple[str, ...] = Field(
        (sys.executable, "-m", "pruning"), description="The program that runs recipes."
    )
    child_device: str = "auto"
    park_child: bool = Field(
        True,
        description="Between jobs a child waits that has imported everything: about 400 MB.",
    )

    @model_validator(mode="before")
    @classmethod
    def _under_data_dir(cls, values: dict[str, object]) -> dict[str, object]:
        root = Path(str(values.get("data_dir") or ".espalier")).expanduser().absolute()
        defaults = {
            "database_url": f"sqlite:///{root}/espalier.db",
            "broker_url": f"filesystem://{root}/broker",
            "artifacts_url": f"file://{root}/artifacts",
        }
        given = {key: value for key, value in values.items() if value != ""}
        return {**defaults, **given, "data_dir": root}

    @model_validator(mode="after")
    def _absolute_roots(self) -> Self:
        for root in self.allowed_paths:
            if not root.is_absolute():
                raise ValueError(f"allowed_paths must be absolute, got {root}")
        return self

    @property
    def installation_secret(self) -> bytes:
        """What signatures are derived from."""
        given = self.session_secret
        return installation_secret(self.data_dir, given.get_secret_value() if given else None)

    @property
    def work_dir(self) -> Path:
        """Where attempts keep recipes, logs and what the child writes before it is published."""
        return self.data_dir / "work"

    def allows_path(self, path: str) -> bool:
        """Whether `path`, links followed, lies under an allowed root."""
        real = Path(os.path.realpath(path))
        return any(real.is_relative_to(os.path.realpath(root)) for root in self.allowed_paths)
