"""Reads the settings and finds everything that is wrong with them at once."""

import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from worker.config.credentials import DEFAULT
from worker.config.forms import commas
from worker.config.problems import ConfigError, explain, suggestion, toml_name
from worker.config.settings import Settings, Variables

FILE_VARIABLE: Final = "WORKER_CONFIG"
DEFAULT_FILE: Final = "worker.toml"
_PREFIX: Final = "WORKER_"


def load_settings(*, warn: Callable[[str], None] = lambda _line: None) -> Settings:
    """Return the settings. `warn` gets a line for what is suspicious but no error. Raises ConfigError."""
    for line in _strange_variables():
        warn(line)
    path, document = _read_file()
    settings, problems = _validate(path, document)
    problems += _dangling(path, document)
    if problems or settings is None:
        raise ConfigError(problems)
    return settings


def _read_file() -> tuple[str, dict[str, Any]]:
    named = os.environ.get(FILE_VARIABLE)
    path = named or DEFAULT_FILE
    try:
        # Decimal keeps a price exactly as it was written.
        return path, tomllib.loads(Path(path).read_text(encoding="utf-8"), parse_float=Decimal)
    except FileNotFoundError:
        if named:
            raise ConfigError([f"{FILE_VARIABLE}: there is no file {path!r}"]) from None
        return path, {}
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError([f"{path}: cannot be read: {reason}"]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{path}: is not valid TOML: {error}"]) from None


def _validate(path: str, document: Mapping[str, Any]) -> tuple[Settings | None, list[str]]:
    # BaseSettings gives arguments with a leading underscore a meaning of its own.
    hidden = [key for key in document if key.startswith("_")]
    problems = [f"{path}: {key}: is not a setting" for key in hidden]
    try:
        return Settings(**{key: value for key, value in document.items() if key not in hidden}), problems
    except ValidationError as error:
        details = error.errors(include_url=False)
        return None, problems + [f"{_name(path, document, one)}: {explain(one, Settings)}" for one in details]


def _name(path: str, document: Mapping[str, Any], error: ErrorDetails) -> str:
    """Name a setting the way its writer wrote it: as a variable, or as a place in the file."""
    location = error["loc"]
    variable = str(location[0]).upper() if location else ""
    in_file = variable.lower() in document and not os.environ.get(variable)
    return f"{path}: {toml_name(location, document)}" if in_file else variable


def _dangling(path: str, document: Mapping[str, Any]) -> list[str]:
    """Find references to what is not there, in the file as it is: other values of it may be wrong."""
    known = _table(document, "credentials")
    return [
        f"{path}: tenants.{name}.credentials: there is no [credentials.{wanted}]" + suggestion(wanted, known)
        for name, tenant in _table(document, "tenants").items()
        if isinstance(tenant, dict)
        for wanted in _texts(tenant.get("credentials"))
        if wanted not in {DEFAULT, *known}
    ]


def _table(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = document.get(name)
    return found if isinstance(found, dict) else {}


def _texts(value: object) -> list[str]:
    """Return the names that a list or a comma-separated text holds; what is neither is told elsewhere."""
    split = commas(value)
    texts = [one.strip() for one in split if isinstance(one, str)] if isinstance(split, tuple) else []
    return [text for text in texts if text]


def _strange_variables() -> Iterator[str]:
    known = [name.upper() for name in Variables.model_fields] + [FILE_VARIABLE]
    for name in sorted(os.environ):
        if name.startswith(_PREFIX) and name not in known:
            yield f"{name}: is not a setting and is ignored" + suggestion(name, known)
