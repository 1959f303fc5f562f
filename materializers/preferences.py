"""Preference pairs and instructions: one Parquet file per split, and a preview."""

from typing import Any, ClassVar

from datasets import Dataset
from zenml.client import Client
from zenml.enums import VisualizationType
from zenml.metadata.metadata_types import MetadataType

from posttrain.data.stored import Instructions, Preferences
from posttrain.orchestration.running_step.folder_materializer import FolderMaterializer
from posttrain.orchestration.running_step.stored_files import DamagedArtifact, read_digests
from posttrain.reporting.html import Table, tables_page

N_SHOWN = 5


class PreferencesMaterializer(FolderMaterializer):
    """Stores preference pairs, once for all runs. Their content hash does not depend on where they were read from."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (Preferences,)

    def places_of_equal(self, data: Preferences) -> list[str]:
        """Return where the newest artifact with the same rows is: the step that loads them is never cached."""
        found = Client().list_artifact_versions(
            data_type=f"contains:{Preferences.__name__}",
            artifact_store_id=self.artifact_store.id,
            run_metadata=f"digest:{data.digest}",
            sort_by="desc:created",
            size=1,
        )
        try:
            return [read_digests(artifact.uri, self.artifact_store).place for artifact in found.items]
        except DamagedArtifact:
            return []

    def extract_metadata(self, data: Preferences) -> dict[str, MetadataType]:
        """Return the number of pairs in each split, and the digest."""
        return {"digest": data.digest, **{f"n_{name}": len(rows) for name, rows in data.splits().items()}}

    def save_visualizations(self, data: Preferences) -> dict[str, VisualizationType]:
        """Write a page with the first pairs of each split."""
        columns = ["prompt", "chosen", "rejected"]
        tables = {f"{name}: {len(rows)} pairs": _preview(rows, columns) for name, rows in data.splits().items()}
        return self.save_page(tables_page("Preference pairs", tables))

    def compute_content_hash(self, data: Preferences) -> str:
        """Return the digest of all rows."""
        return data.digest


class InstructionsMaterializer(FolderMaterializer):
    """Stores an instruction set."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (Instructions,)

    def extract_metadata(self, data: Instructions) -> dict[str, MetadataType]:
        """Return the number of rows, and the digest."""
        return {"digest": data.digest, "n_rows": len(data.rows)}

    def save_visualizations(self, data: Instructions) -> dict[str, VisualizationType]:
        """Write a page with the first rows."""
        tables = {f"{len(data.rows)} rows": _preview(data.rows, ["prompt", "completion"])}
        return self.save_page(tables_page("Instructions", tables))

    def compute_content_hash(self, data: Instructions) -> str:
        """Return the digest of all rows."""
        return data.digest


def _preview(rows: Dataset, columns: list[str]) -> Table:
    first = rows.select(range(min(N_SHOWN, len(rows))))
    return Table(columns, [[_text(row[column]) for column in columns] for row in first], is_prose=True)


def _text(messages: list[dict[str, str]]) -> str:
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)
