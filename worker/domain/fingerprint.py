"""Which messages are the same job.

The content of a job is its kind, request, options and labels, as its producer
wrote them: a default that is spelled out is another content than one left out,
so that a new default never turns an old job into a conflict. Where the reply
goes, and when the message was sent, is not content.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson


def canonical_json(content: Mapping[str, Any]) -> bytes:
    """Return the content as JSON, the same for every layout and order of keys.

    An infinite number becomes `null`. Raises TypeError for an integer beyond 64 bits.
    """
    parts = ("kind", "labels", "options", "request")
    return orjson.dumps([content.get(part) for part in parts], option=orjson.OPT_SORT_KEYS)


def fingerprint(canonical: bytes) -> bytes:
    """Return the SHA-256 of canonical JSON."""
    return hashlib.sha256(canonical).digest()
