"""Connects to an MLflow server or database and shortens its error messages."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from posttrain.errors import UserError
from posttrain.storage.addresses import without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient


def checked_uri(uri: str) -> str:
    """Return the URI of a tracking server or database.

    Raises:
        UserError: it is a folder, in which MLflow 3 keeps no runs.
    """
    if uri.startswith("file:") or "://" not in uri:
        folder = uri.removeprefix("file://").removeprefix("file:").rstrip("/")
        raise UserError(
            f"{uri}: MLflow 3 keeps no runs in folders: use a database there, as in MLFLOW_TRACKING_URI=sqlite:///{folder}/mlflow.db"
        )
    return uri


def connect(uri: str) -> MlflowClient:
    """Return a client with short timeouts that does not log retries and migrations."""
    # With MLflow's defaults a call to a dead server takes four minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    for name in ("mlflow.store.db", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").addFilter(_is_not_about_mlflow)
    from mlflow import MlflowClient

    if database := sqlite_path(uri):
        database.parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(uri)


def _is_not_about_mlflow(entry: logging.LogRecord) -> bool:
    return "/mlflow" not in entry.getMessage()


def sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None


def reason(failure: BaseException) -> str:
    """Return the root cause of an error in one line, e.g. `Connection refused`."""
    cause: BaseException | None = failure
    while cause:
        if isinstance(cause, OSError):
            failure = cause
        cause = cause.__cause__ or cause.__context__
    return without_secrets((str(failure).strip() or type(failure).__name__).splitlines()[0])[:200]
