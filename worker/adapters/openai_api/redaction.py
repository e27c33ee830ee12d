"""Takes out of OpenAI's error messages what is nobody else's business."""

import re
from typing import Final
from urllib.parse import urlsplit

_LONGEST: Final = 300
_SEARCHABLE: Final = 2**20
"""Bytes; the message of a larger request is dropped rather than searched for traces of it."""

_KEY: Final = re.compile(r"\b(?:sk|sess|rk|pk|ek)-[\w*.…-]+")
_URL: Final = re.compile(r"\b[a-zA-Z][a-zA-Z0-9+.-]*:(?://|[^\s,;]{32,})\S*")
_QUOTED: Final = re.compile(r"(['\"`])(\S.*?)\1")
_EDGES: Final = "'\"`.,:;()[]{}<>?!"
_MODEL: Final = re.compile(r'"model"\s*:\s*"([^"]*)"')
_RUN: Final = 3
"""Words in a row that are a quotation if the request holds them too."""
_SHORTEST: Final = 6
"""Characters of a single word that may identify somebody."""
_MASK: Final = "…"


def safe_message(message: str, request_body: bytes) -> str:
    """Return a message without keys, foreign URLs and quotations from the request; empty where unsure."""
    if len(request_body) > _SEARCHABLE:
        return ""
    line = " ".join("".join(char if char.isprintable() else " " for char in message[:4096]).split())
    line = _URL.sub(_keep_documentation, _KEY.sub("sk-" + _MASK, line))
    line = _without_quotations(line, request_body.decode(errors="replace").replace("\\n", " "))
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + _MASK


def _keep_documentation(url: re.Match[str]) -> str:
    try:
        host = urlsplit(url[0]).hostname or ""
    except ValueError:
        return _MASK
    return url[0] if host == "openai.com" or host.endswith(".openai.com") else _MASK


def _without_quotations(line: str, request: str) -> str:
    line = _QUOTED.sub(
        lambda found: f"{found[1]}{_MASK}{found[1]}" if _is_value(found[2], request) else found[0], line
    )
    words = line.split(" ")
    hidden = [_identifies(word.strip(_EDGES), request) for word in words]
    for start in range(len(words) - _RUN + 1):
        if " ".join(words[start : start + _RUN]).strip(_EDGES) in request:
            hidden[start : start + _RUN] = [True] * _RUN
    shown = [_MASK if hide else word for word, hide in zip(words, hidden, strict=True)]
    return " ".join(word for i, word in enumerate(shown) if word != _MASK or shown[i - 1 : i] != [_MASK])


def _identifies(word: str, request: str) -> bool:
    """Tell what may name somebody, such as numbers and addresses, from plain words."""
    return len(word) >= _SHORTEST and not word.isalpha() and _is_value(word, request)


def _is_value(text: str, request: str) -> bool:
    """Tell what the request says from the names of its parameters and its model."""
    if text not in request:
        return False
    model = _MODEL.search(request)
    return not (model and model[1] == text) and not re.search(rf'"{re.escape(text)}"\s*:', request)
