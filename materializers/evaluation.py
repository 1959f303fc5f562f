"""Materializer of evaluations: the metrics and the rows they are computed from."""

import hashlib
from typing import Any, ClassVar

from zenml.enums import VisualizationType
from zenml.metadata.metadata_types import MetadataType

from posttrain.evaluation.key_figures import key_figures
from posttrain.evaluation.scoring import Evaluation
from posttrain.orchestration.running_step.folder_materializer import FolderMaterializer
from posttrain.reporting.html import Table, tables_page


class EvaluationMaterializer(FolderMaterializer):
    """Stores an evaluation. Its content hash covers all metrics and the digests of the evaluated data and models."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (Evaluation,)

    def extract_metadata(self, data: Evaluation) -> dict[str, MetadataType]:
        """Return the number of pairs and the key metrics of each model."""
        return {"n_pairs": data.figures.n_pairs, **key_figures(data.figures)}

    def save_visualizations(self, data: Evaluation) -> dict[str, VisualizationType]:
        """Write an HTML page with the key metrics and return its location."""
        rows = [[name, f"{value:.4g}"] for name, value in key_figures(data.figures).items()]
        return self.save_page(tables_page("Evaluation", {"": Table(["figure", "value"], rows)}))

    def compute_content_hash(self, data: Evaluation) -> str:
        """Return the sha256 of the metrics."""
        return hashlib.sha256(data.figures.model_dump_json().encode()).hexdigest()
