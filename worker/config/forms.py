"""Accepted forms of values: each reads a value, or says in one line what it should have been."""

import math
import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Annotated, Final
from urllib.parse import parse_qs, urlsplit

from pydantic import AfterValidator, BeforeValidator, PlainValidator, SecretStr

_SHOWN_LENGTH: Final = 30
_TELLTALES: Final = ("://", "@", "sk-")
_MOST_DOLLARS: Final = 10**9
_PLACES: Final = 12
"""Of an amount; costs are computed in integers."""
_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,18}")
_MODULE: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_VARIABLE: Final = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_DATABASE: Final = re.compile(r"sqlite(\+\w+)?:///[^:].*|postgres(ql)?(\+\w+)?://.*", re.DOTALL)


def shown(value: object) -> str:
    """Return a value as an error line may show it: short, and nothing that could be a secret."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float | Decimal):
        return str(value)[:_SHOWN_LENGTH]
    if not isinstance(value, str):
        return "a table" if isinstance(value, dict) else "a list" if isinstance(value, list) else "that"
    if len(value) > _SHOWN_LENGTH or any(mark in value for mark in _TELLTALES):
        return f"a text of {len(value)} characters"
    return repr(value)


def _decimal(value: object) -> Decimal:
    """Read text or a number; NaN for what is neither."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        return Decimal("nan")
    try:
        return Decimal(str(value).strip())
    except InvalidOperation:
        return Decimal("nan")


def whole(low: int, high: int) -> PlainValidator:
    """Accept a whole number within bounds."""

    def read(value: object) -> int:
        text = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
        if not _WHOLE.fullmatch(text) or not low <= int(text) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}, not {shown(value)}")
        return int(text)

    return PlainValidator(read)


def seconds(low: int, high: int) -> PlainValidator:
    """Accept a number of seconds within bounds, fractions included."""

    def read(value: object) -> float:
        number = float(_decimal(value))
        if not low <= number <= high:
            raise ValueError(f"must be a number of seconds from {low} to {high}, not {shown(value)}")
        return number

    return PlainValidator(read)


def _read_amount(value: object) -> Decimal:
    amount = _decimal(value)
    if not amount.is_finite() or not 0 <= amount <= _MOST_DOLLARS or amount != round(amount, _PLACES):
        raise ValueError(f"must be an amount of US dollars like 0.25, not {shown(value)}")
    return amount


def _read_weight(value: object) -> float:
    weight = float(_decimal(value))
    if not math.isfinite(weight) or weight <= 0:
        raise ValueError(f"must be a number above 0, not {shown(value)}")
    return weight


def _read_regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"must be a regular expression ({error.msg})") from None
    return text


def _read_name(value: object) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError(f"must be a text that is not empty, not {shown(value)}")
    return value.strip()


def _read_variable(value: object) -> str:
    if not isinstance(value, str) or not _VARIABLE.fullmatch(value):
        raise ValueError(f"must be the name of an environment variable, not {shown(value)}")
    return value


def commas(value: object) -> object:
    """Split a comma-separated text; leave a list as it is."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return tuple(value) if isinstance(value, list) else value


def lower(value: object) -> object:
    """Forgive upper case."""
    return value.lower() if isinstance(value, str) else value


def one_of(*choices: str) -> AfterValidator:
    """Accept nothing but the choices, in a comma-separated list of at least one."""

    def check(values: tuple[str, ...]) -> tuple[str, ...]:
        strange = [value for value in values if value not in choices]
        if strange or not values:
            found = shown(strange[0]) if strange else "an empty list"
            raise ValueError(f"must be a comma-separated list of {', '.join(choices)}, not {found}")
        return tuple(dict.fromkeys(values))

    return AfterValidator(check)


def _check_modules(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if not _MODULE.fullmatch(value):
            raise ValueError(f"must be comma-separated names of Python modules, not {shown(value)}")
    return values


def _secret(check: Callable[[str], str]) -> AfterValidator:
    """Check the text inside a secret; `check` must not quote it."""
    return AfterValidator(lambda secret: SecretStr(check(secret.get_secret_value())))


def _has_host(text: str, *schemes: str) -> bool:
    try:
        url = urlsplit(text)
        return url.scheme in schemes and bool(url.hostname) and url.port != 0
    except ValueError:
        return False


def _read_amqp(text: str) -> str:
    if not _has_host(text, "amqp", "amqps"):
        raise ValueError("must be an URL like amqp://user:password@host:5672/vhost or amqps://…")
    if "no_verify_ssl" in parse_qs(urlsplit(text).query, keep_blank_values=True):
        raise ValueError("must not switch off the verification of certificates (no_verify_ssl)")
    return text


def _read_database(text: str) -> str:
    if not _DATABASE.fullmatch(text):
        raise ValueError(
            "must be an SQLAlchemy URL like sqlite:///openai-worker.db or postgresql://user:password@host/name"
        )
    return text


def _read_redis(text: str) -> str:
    if not _has_host(text, "redis", "rediss"):
        raise ValueError("must be an URL like redis://:password@host:6379/0 or rediss://…")
    return text


def _read_http(text: str) -> str:
    if not _has_host(text, "http", "https"):
        raise ValueError("must be an URL like https://api.openai.com/v1")
    if urlsplit(text).username is not None:
        raise ValueError("must not hold a user or password")
    return text


def is_header(text: str) -> bool:
    """Tell whether a text can travel in an HTTP header."""
    return bool(text) and text.isascii() and text.isprintable()


def _read_key(text: str) -> str:
    # A line break pasted along with a key is forgiven; one inside would only fail at the first request.
    if not is_header(text.strip()):
        raise ValueError("must be a key of printable ASCII characters")
    return text.strip()


def _read_id(text: str) -> str:
    if not is_header(text.strip()):
        raise ValueError(f"must be an id of printable ASCII characters, not {shown(text)}")
    return text.strip()


Dollars = Annotated[Decimal, PlainValidator(_read_amount)]
Weight = Annotated[float, PlainValidator(_read_weight)]
Name = Annotated[str, PlainValidator(_read_name)]
Variable = Annotated[str, PlainValidator(_read_variable)]
HeaderId = Annotated[str, AfterValidator(_read_id)]
Regex = Annotated[str, AfterValidator(_read_regex)]
HttpUrl = Annotated[str, AfterValidator(_read_http)]
Key = Annotated[SecretStr, _secret(_read_key)]
AmqpUrl = Annotated[SecretStr, _secret(_read_amqp)]
DatabaseUrl = Annotated[SecretStr, _secret(_read_database)]
RedisUrl = Annotated[SecretStr, _secret(_read_redis)]
Modules = Annotated[tuple[str, ...], BeforeValidator(commas), AfterValidator(_check_modules)]
