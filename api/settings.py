"""Settings of the HTTP process alone; where things are kept is in `registry.settings`."""

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class ApiSettings(BaseSettings):
    """Everything an operator may set about the API, from `ESPALIER_*`."""

    model_config = SettingsConfigDict(env_prefix="ESPALIER_", frozen=True, extra="ignore")

    session_secret: SecretStr | None = Field(
        None,
        min_length=16,
        description="Signs dashboard sessions; the same in every API process. "
        "Default: made once and kept in `data_dir`.",
    )
    max_body_bytes: int = Field(1 << 20, gt=0, description="Larger requests are refused.")
    rate_limit_per_second: float = Field(
        1000.0, ge=0, description="Requests of one API key to each process; 0 does not limit."
    )
    rate_limit_burst: int = Field(2000, ge=1, description="How many of them at once.")
    max_upload_bytes: int = Field(20 << 30, gt=0, description="Longer uploads are refused.")
    poll_seconds: float = Field(
        0.1, gt=0, description="How often streams and long polls look at the database."
    )
    max_wait_seconds: float = Field(60.0, gt=0, description="The longest long poll.")
    hub_seconds: float = Field(
        3.0, ge=0, description="What asking a hub for a model's config.json may take; 0 asks none."
    )
    readiness_seconds: float = Field(1.0, gt=0, description="What each readiness check may take.")
