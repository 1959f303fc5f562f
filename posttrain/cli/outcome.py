"""Error handling and file output of the commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from posttrain.errors import UserError
from posttrain.storage.plain_text import plain_text, shown


@contextmanager
def clean_errors() -> Iterator[None]:
    """Turn a `UserError` into one line on the terminal and exit status 1."""
    try:
        yield
    except UserError as error:
        raise click.ClickException(shown(error)) from error


def echo(text: str, *, err: bool = False) -> None:
    """Print text as it is, without control characters that a name or a dataset may contain."""
    click.echo(plain_text(text), err=err)


def write_file(path: Path, text: str) -> None:
    """Write a text file.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}): choose another file") from error
