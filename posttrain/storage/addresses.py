"""Addresses without what is secret in them: user, password and query."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_ADDRESS = re.compile(
    r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]*)://"
    r"(?P<user>[^\s/@:]*:[^\n@]*@|[^\s/@]+@)?"  # a password may contain slashes and spaces
    r"(?P<place>[^\s?#'\"]*)"
    r"(?P<query>[?#][^\s'\"]*)?"
)


def shown_address(address: str) -> str:
    """Return an address as scheme, host, port and path. A text that is no address, such as a path, is returned as it is."""
    scheme, separator, rest = address.partition("://")
    if not separator:
        return address
    place = re.split(r"[?#]", rest, maxsplit=1)[0]
    if "@" in place:
        return f"{scheme}://{place.rpartition('@')[2]}"
    if "@" in rest:  # either a password with a `?`, or a query with an `@`: what is the host cannot be told
        return f"{scheme}://…"
    return f"{scheme}://{place}"


def without_secrets(text: str) -> str:
    """Return a text with the addresses in it shortened to scheme, host, port and path.

    Text between the beginning of an address with a password and a later `@` of the same line is lost.
    """
    return _ADDRESS.sub(lambda found: shown_address(found.group()), text)


def has_user(address: str) -> bool:
    """Return whether an address names a user or password. In the path, an `@` is allowed."""
    if "://" not in address:
        return False
    place = urlsplit(address).netloc
    host, separator, port = place.rpartition(":")
    is_port = not separator or port.isdecimal() or not port or host.endswith("]")
    return "@" in place or (not is_port and "@" in address)  # a password with a slash looks like a path
