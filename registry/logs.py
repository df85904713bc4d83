"""Log lines of the service: structured, with the ids of what they are about, without secrets.

`bound` puts ids on every line of a block, whichever module writes it. What looks like a secret is
blotted out last, in keys, values, messages and stack traces alike.
"""

import json
import logging
import re
import sys
from collections.abc import MutableMapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal

import structlog
from pydantic_core import PydanticSerializationError, to_json

Format = Literal["console", "json"]

bound = structlog.contextvars.bound_contextvars

HIDDEN = "[hidden]"
_SECRET_KEYS = re.compile(
    r"secret|passw|authorization|cookie|credential|api_?key|(^|_)token$", re.IGNORECASE
)
_SECRETS = re.compile(
    r"pk_[0-9a-f]{12}_[0-9a-f]+"  # our API keys
    r"|hf_[A-Za-z0-9]{16,}"  # Hugging Face
    r"|whsec_[A-Za-z0-9+/=]+"  # webhook signatures
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}"  # AWS
    r"|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"  # user:password in a URL
    r"|(?<=[Bb]earer )[\w.~+/-]+=*"
    r"|(?<=[?&]signature=)[\w%-]+"
)


def redact(value: Any) -> Any:
    """The value with everything that looks like a secret blotted out. Pure."""
    match value:
        case str():
            return _SECRETS.sub(HIDDEN, value)
        case dict():
            return {
                key: HIDDEN if _names_secret(key) else redact(item) for key, item in value.items()
            }
        case list() | tuple():
            return [redact(item) for item in value]
        case _:
            return value


@lru_cache(maxsize=1000)
def _names_secret(key: object) -> bool:
    return isinstance(key, str) and _SECRET_KEYS.search(key) is not None


def configure(log_format: Format = "console", level: int = logging.INFO) -> None:
    """Send all logging of this process to standard error, structured."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(log_format))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # No line names them, and every record would look them up.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


def formatter(log_format: Format) -> logging.Formatter:
    """The formatter for records of the standard library's loggers."""
    return _JsonLines() if log_format == "json" else _console()


_OF_EVERY_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class _JsonLines(logging.Formatter):
    """An object a line. Every request writes one: structlog's chain of processors takes longer."""

    def format(self, record: logging.LogRecord) -> str:
        said = {
            "event": record.getMessage(),
            **structlog.contextvars.get_contextvars(),
            "level": record.levelname.lower(),
            "logger": record.name,
            **{key: said for key, said in vars(record).items() if key not in _OF_EVERY_RECORD},
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z"),
        }
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            said["stack"] = record.stack_info
        return _write_json(redact(said))


def _console() -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(),
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            _redact_event,
            structlog.dev.ConsoleRenderer(colors=False),
        ],
    )


def _write_json(event: dict[str, Any]) -> str:
    try:
        return to_json(event, fallback=str, inf_nan_mode="constants").decode()
    except PydanticSerializationError:
        # Half a character, or bytes that are no text: the slower one writes them escaped.
        return json.dumps(event, default=str)


def _redact_event(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    clean: MutableMapping[str, Any] = redact(dict(event))
    return clean
