"""Nothing that data or models write can control a terminal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.storage.plain_text import plain_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]52;c;aGlkZGVu\x07", "]52;c;aGlkZGVu"),  # writes to the clipboard
        ("\x1b]0;title\x1b\\", "]0;title\\"),
        ("\x9b31mred", "31mred"),  # the same as ESC [ in one character
        ("a\rb\x08c", "abc"),
        ("\u202etxt.exe", "txt.exe"),
        ("two\nlines\tof 日本語 👩‍👩‍👧 é", "two\nlines\tof 日本語 👩‍👩‍👧 é"),
        ("lone \ud800 surrogate", "lone  surrogate"),
    ],
)
def test_control_sequences_lose_their_effect(text: str, shown: str) -> None:
    assert plain_text(text) == shown


@given(st.text())
def test_no_control_character_is_left(text: str) -> None:
    shown = plain_text(text)
    assert all(
        character in "\n\t" or character.isprintable() or character.isspace()
        for character in shown
        if ord(character) < 0xA0
    )
    assert plain_text(shown) == shown
