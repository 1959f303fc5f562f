"""Where a dataset comes from, in the form in which MLflow describes sources."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

DIGEST_CHARS = 16  # of a dataset's digest, for display; MLflow allows 36, and the profile has the whole digest


@dataclass(frozen=True)
class DatasetOrigin:
    """The source of a dataset."""

    path: str
    """A file or folder, a URL on S3, or a dataset id on the Hub."""
    commit: str | None = None
    """The commit on the Hub; None for other sources."""
    objects: dict[str, str] = field(default_factory=dict)
    """Version id, or ETag, by URL of each object read from S3."""
    digest: str | None = None
    """sha256 of the files."""

    def for_mlflow(self) -> tuple[str, dict[str, Any]]:
        """Return MLflow's type of this source, and the source as a class of that type writes it.

        `mlflow.data.get_source` reads it back. A glob of several objects keeps its own URL.
        """
        if self.commit is not None:
            return "hugging_face", {"path": self.path, "revision": self.commit}
        if self.path.startswith("s3://"):
            return "s3", {"uri": next(iter(self.objects)) if len(self.objects) == 1 else self.path}
        return "local", {"uri": self.path}


def dataset_input(name: str, digest: str, n_rows: int, origin: dict[str, Any], context: str) -> DatasetInput:
    """Return a dataset as an input of an MLflow run.

    Args:
        digest: of the rows that are used.
        origin: a `DatasetOrigin` as a dict.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source_type, source = DatasetOrigin(**origin).for_mlflow()
    profile = {"num_rows": n_rows, "digest": digest}
    profile |= {f"source_{key}": value for key, value in origin.items() if key in ("objects", "digest") and value}
    dataset = Dataset(
        name, digest[:DIGEST_CHARS], source_type=source_type, source=json.dumps(source), profile=json.dumps(profile)
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])


def as_record(digest: str, n_rows: int, origin: DatasetOrigin, context: str) -> dict[str, Any]:
    """Return what `dataset_input` takes besides the name, as plain values."""
    return {"digest": digest, "n_rows": n_rows, "origin": asdict(origin), "context": context}
