"""What is wrong with a value, in words that quote none of it."""

import re
from typing import Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

_SHOWN: Final = 3
"""Problems named in one sentence; more would bury the first."""

_NAME: Final = re.compile(r"[A-Za-z0-9_.\-]{1,40}", re.ASCII)

_TEXTS: Final = {
    "extra_forbidden": "is not a known field",
    "missing": "is missing",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "string_type": "must be a text",
}
_SUBJECT: Final = re.compile(r"^(?:Input|String|List|Dictionary|Value) should ")


def field_name(name: object) -> str:
    """Return a field's name where it is short and harmless; a hostile one is only called a field."""
    if isinstance(name, int):
        return str(name)
    return name if isinstance(name, str) and _NAME.fullmatch(name) else "<field>"


def explain(error: ValidationError, root: str = "") -> str:
    """Return the first problems, as `request.model: is missing; ...`."""
    details = error.errors(include_url=False, include_input=False, include_context=False)
    told = "; ".join(_one(detail, root) for detail in details[:_SHOWN])
    more = len(details) - _SHOWN
    return f"{told}; and {more} more" if more > 0 else told


def _one(detail: ErrorDetails, root: str) -> str:
    path = [root] if root else []
    path += [field_name(part) for part in detail["loc"] if part != "[key]"]
    message = _SUBJECT.sub("must ", detail["msg"].removeprefix("Value error, "))
    text = _TEXTS.get(detail["type"], message[:1].lower() + message[1:])
    return f"{'.'.join(path)}: {text}" if path else text
