"""Assertions about other libraries that say what changed and which function of posttrain/compat must be looked at."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any


def require(holds: object, package: str, fact: str, user: Callable[..., Any] | type) -> None:
    """Fail unless a fact about an installed package holds.

    Args:
        package: name of the distribution.
        fact: what must be true.
        user: the function or class in posttrain/compat that relies on it.
    """
    assert holds, (
        f"{package} {version(package)} no longer fulfils: {fact}. {user.__module__}.{user.__name__} relies on it: read the "
        f"new version, adapt that function, or exclude the version in pyproject.toml."
    )
