"""Addresses in messages, logs and records contain no secret."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.storage.addresses import has_user, shown_address, without_secrets

SHOWN = [
    ("postgresql://h/db?password=hidden", "postgresql://h/db"),
    ("postgresql://user:hidden@h:5432/db", "postgresql://h:5432/db"),
    ("postgresql://user:hid/hidden@h/db", "postgresql://h/db"),
    ("postgresql://user:hid hidden@h/db", "postgresql://h/db"),
    ("postgresql://user:hid@hidden@h/db", "postgresql://h/db"),
    ("postgresql://user:hid?hidden@h/db", "postgresql://…"),
    ("postgresql://user:hid#hidden@h/db", "postgresql://…"),
    ("postgresql://h/db?password=hid@hidden", "postgresql://…"),
    ("s3://KEY:hid/hidden@bucket/folder", "s3://bucket/folder"),
    ("https://hidden@host/v1", "https://host/v1"),
    ("https://host/v1?api-key=hidden#hidden", "https://host/v1"),
    ("sqlite:////some/folder/mlflow.db", "sqlite:////some/folder/mlflow.db"),
    ("http://[::1]:5000", "http://[::1]:5000"),
    ("/a/path with spaces?", "/a/path with spaces?"),
]


@pytest.mark.parametrize(("address", "shown"), SHOWN)
def test_an_address_is_shown_without_user_password_and_query(address: str, shown: str) -> None:
    assert shown_address(address) == shown
    assert "hidden" not in without_secrets(f"{address}")
    if " " not in shown:
        assert without_secrets(f"MLflow at {address}") == f"MLflow at {shown}"


def test_a_text_keeps_everything_but_the_secret() -> None:
    text = "cannot connect to 'https://u:p@host:1/x?key=1', see https://docs.example.org/a"
    assert without_secrets(text) == "cannot connect to 'https://host:1/x', see https://docs.example.org/a"


@given(st.text(st.characters(exclude_characters="\n\r"), min_size=3).map(lambda text: text.replace("@", "")))
def test_no_password_is_shown(password: str) -> None:
    secret = f"<{password}>"
    assert secret not in shown_address(f"mysql://user:{secret}@host/db")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("s3://KEY:SECRET@bucket", True),
        ("s3://KEY:SEC/RET@bucket/file", True),
        ("https://token@host", True),
        ("s3://bucket/a@b.jsonl", False),
        ("http://host:8000/a@b", False),
        ("http://[::1]:8000/v1", False),
        ("user@host", False),
        ("s3://bucket:x/y", False),
    ],
)
def test_a_user_in_an_address_is_found(address: str, expected: bool) -> None:
    assert has_user(address) == expected
