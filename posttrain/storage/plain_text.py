"""Text of data, names and models, made safe for a terminal."""

from __future__ import annotations

import unicodedata

from posttrain.storage.addresses import without_secrets

_KEPT = "\n\t"
_DIRECTION = dict.fromkeys([0x202A, 0x202B, 0x202C, 0x202D, 0x202E, 0x2066, 0x2067, 0x2068, 0x2069])
"""Characters that change the order in which the following text is shown."""


def plain_text(text: str) -> str:
    """Return a text without control characters, except line breaks and tabs.

    A terminal obeys sequences that begin with one: they write to the clipboard, set the title, or hide text.
    """
    return "".join(
        character for character in text.translate(_DIRECTION) if character in _KEPT or not _is_control(character)
    )


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs")


def shown(error: BaseException) -> str:
    """Return the message of an error for a terminal: plain text, and addresses without what is secret."""
    return plain_text(without_secrets(str(error)))
