"""Which URLs may be handed to OpenAI to fetch.

The worker never connects to such a URL and never resolves its name; it only
forwards it. So a public name that resolves, or redirects, to a private address
is for OpenAI's own fetcher to refuse. What can be seen in the URL itself is
refused here.
"""

import ipaddress
import re
from typing import Final
from urllib.parse import SplitResult, urlsplit

MAX_URL_CHARS: Final = 8192

_VISIBLE: Final = re.compile(r"[!-\[\]-~]+", re.ASCII)
"""Printable ASCII without space and backslash, which readers of URLs understand differently."""
_HOST: Final = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})+", re.ASCII)
_NUMERIC: Final = re.compile(r"\d+|0x[0-9a-f]*", re.ASCII)
"""A last label that makes readers of URLs take the host for an IPv4 address, however written."""

_PRIVATE_SUFFIXES: Final = (".localhost", ".local", ".localdomain", ".internal", ".intranet", ".lan", ".arpa")

_TUNNELS: Final = tuple(
    ipaddress.IPv6Network(network)
    for network in ("::/96", "2001::/32", "2002::/16", "64:ff9b::/96", "64:ff9b:1::/48")
)
"""IPv6 ranges that carry an IPv4 address inside."""


class UrlError(ValueError):
    """The URL is not one to be fetched; the message says why without quoting it."""


def check_public_url(url: str) -> None:
    """Accept http and https URLs of public hosts. Raises UrlError."""
    parts = _split(url)
    if parts.scheme not in {"http", "https"}:
        raise UrlError("only http and https URLs are accepted")
    if "@" in parts.netloc:
        raise UrlError("a URL must not hold a user name or password")
    _check_host((parts.hostname or "").removesuffix("."))


def _split(url: str) -> SplitResult:
    if len(url) > MAX_URL_CHARS:
        raise UrlError(f"a URL must be at most {MAX_URL_CHARS} characters")
    if not _VISIBLE.fullmatch(url):
        raise UrlError("a URL must be printable ASCII without spaces or backslashes: percent-encode the rest")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise UrlError("it cannot be read as a URL") from None
    return parts


def _check_host(host: str) -> None:
    if ":" in host:
        public = _public_ipv6(host)
    elif _NUMERIC.fullmatch(host.rpartition(".")[2]):
        public = _public_ipv4(host)
    else:
        public = bool(_HOST.fullmatch(host)) and not host.endswith(_PRIVATE_SUFFIXES)
    if not public:
        raise UrlError("the host must be public: a full domain name, or a plain public IP address")


def _public_ipv4(host: str) -> bool:
    """Judge a dotted quad; short, octal and hexadecimal notations have no honest use."""
    try:
        address = ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return address.is_global and not address.is_multicast


def _public_ipv6(host: str) -> bool:
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return False
    if address.scope_id is not None or address.ipv4_mapped is not None:
        return False
    if any(address in tunnel for tunnel in _TUNNELS):
        return False
    return address.is_global and not address.is_multicast
