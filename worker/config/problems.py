"""What is wrong with the settings, one line each, never quoting a secret."""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from worker.config.forms import shown

_FORMS: Final = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "a text",
    "tuple_type": "a list or a comma-separated text",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "mapping_type": "a table",
    "dict_type": "a table",
    "date_type": "a date like 2026-12-01",
    "date_parsing": "a date like 2026-12-01",
    "date_from_datetime_parsing": "a date like 2026-12-01",
    "date_from_datetime_inexact": "a date like 2026-12-01",
}
_EXPECTED: Final = "literal_error"


class ConfigError(Exception):
    """The settings are wrong; `problems` holds one line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean …?`, or nothing where no known name is close."""
    close = get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def explain(error: ErrorDetails, model: type[BaseModel]) -> str:
    """Return what is wrong with one value, and what would be right."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "missing":
        return "must be given"
    if kind == "extra_forbidden":
        name = str(error["loc"][-1])
        return "is not a setting" + suggestion(name, _siblings(model, error["loc"]))
    if kind == "value_error":
        return str(context["error"])
    form = f"one of {context['expected']}" if kind == _EXPECTED else _FORMS.get(kind, "something else")
    return f"must be {form}, not {shown(error['input'])}"


def toml_name(location: Sequence[int | str], document: Mapping[str, Any]) -> str:
    """Return a place in the file as one would write it, with quotes where a key needs them."""
    node: Any = document
    name = ""
    for step in location:
        if isinstance(step, int):
            # A lone table stands for a list of one; an index would not be found in the file.
            name += f"[{step + 1}]" if isinstance(node, list) else ""
            node = node[step] if isinstance(node, list) else node
        else:
            plain = step.replace("-", "").replace("_", "").isalnum() and step.isascii()
            name += f".{step}" if plain else f'."{step}"'
            node = node.get(step) if isinstance(node, dict) else None
    return name.removeprefix(".")


def _siblings(model: type[BaseModel], location: Sequence[int | str]) -> Iterable[str]:
    """Return the keys allowed where the last step of a location stands."""
    for step in location[:-1]:
        field = model.model_fields.get(str(step))
        model = (_model_in(field.annotation) if field else None) or model
    return model.model_fields


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the table that an annotation is about, however it is wrapped."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)
