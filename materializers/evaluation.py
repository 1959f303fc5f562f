"""Evaluations: the figures, and the rows behind them."""

import hashlib
from typing import Any, ClassVar

from zenml.enums import VisualizationType
from zenml.metadata.metadata_types import MetadataType

from posttrain.evaluation.figures import Figures, SetFigures
from posttrain.evaluation.intervals import Estimate
from posttrain.evaluation.scoring import Evaluation
from posttrain.orchestration.folder_materializer import FolderMaterializer, html_table


class EvaluationMaterializer(FolderMaterializer):
    """Stores an evaluation; its content hash covers all figures and the digests of what was evaluated."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (Evaluation,)

    def extract_metadata(self, data: Evaluation) -> dict[str, MetadataType]:
        """How many pairs, and each model's accuracy."""
        return {"n_pairs": data.figures.n_pairs, **key_figures(data.figures)}

    def save_visualizations(self, data: Evaluation) -> dict[str, VisualizationType]:
        """A page with every figure."""
        return self.save_page(html_table(["", "value"], key_figures(data.figures).items()))

    def compute_content_hash(self, data: Evaluation) -> str:
        """sha256 of the figures."""
        return hashlib.sha256(data.figures.model_dump_json().encode()).hexdigest()


NAMES = {
    "likelihood_accuracy": "accuracy",
    "normalised_accuracy": "accuracy_per_token",
    "implicit_accuracy": "accuracy_implicit",
}


def key_figures(figures: Figures) -> dict[str, float]:
    """The figures without their intervals, under names such as `accuracy/dpo` and `gain/dpo_vs_sft`.

    MLflow makes a section of charts of what stands before the slash, in alphabetical order: the accuracies come first, the
    models side by side.
    """
    flat = _of_stages(figures)
    for name, comparison in figures.comparisons.items():
        flat |= {f"gain/{name}": comparison.gain.value, f"p_value/{name}": comparison.p_value}
    flat["length/prefer_longer"] = figures.length.prefer_longer.value
    if figures.calibration:
        flat |= {"calibration/ece": figures.calibration.ece, "calibration/brier": figures.calibration.brier.value}
    for name, of_set in figures.sets.items():
        label = f"set_{name.replace('/', '_')}"
        flat |= {
            f"{label}/{key.replace('/', '_')}": value
            for key, value in _of_stages(of_set).items()
            if key.startswith("accuracy")
        }
        flat |= {f"{label}/gain_{versus}": c.gain.value for versus, c in of_set.comparisons.items()}
    return flat


def _of_stages(figures: SetFigures) -> dict[str, float]:
    return {
        f"{NAMES.get(name, name)}/{stage}": estimate.value
        for stage, of_stage in figures.stages.items()
        for name, estimate in (of_stage or ())
        if isinstance(estimate, Estimate)
    }
