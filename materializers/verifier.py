"""Materializers of verifier_pipeline: the evaluation of a verifier, the answers it chooses among, and the report."""

import hashlib
from typing import Any, ClassVar

from zenml.enums import VisualizationType
from zenml.metadata.metadata_types import MetadataType

from posttrain.evaluation.verification.graded_samples import SampledAnswers
from posttrain.evaluation.verification.verifier_evaluation import VerifierEvaluation
from posttrain.evaluation.verification.verifier_figures import verifier_key_figures
from posttrain.orchestration.running_step.folder_materializer import FolderMaterializer
from posttrain.reporting.pages.verifier_page import verifier_page
from posttrain.reporting.verifier_report import VerifierReport


class VerifierEvaluationMaterializer(FolderMaterializer):
    """Stores an evaluation. Its content hash covers all figures and the digests of the evaluated data and models."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (VerifierEvaluation,)

    def extract_metadata(self, data: VerifierEvaluation) -> dict[str, MetadataType]:
        """Return the number of pairs and the key figures."""
        return {"n_pairs": data.figures.n_pairs, **verifier_key_figures(data.figures)}

    def compute_content_hash(self, data: VerifierEvaluation) -> str:
        """Return the sha256 of the figures."""
        return hashlib.sha256(data.figures.model_dump_json().encode()).hexdigest()


class SampledAnswersMaterializer(FolderMaterializer):
    """Stores the answers that a verifier chooses among."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (SampledAnswers,)

    def extract_metadata(self, data: SampledAnswers) -> dict[str, MetadataType]:
        """Return the number of prompts and answers."""
        return {"n_prompts": len(data.questions), "n_answers": sum(len(found.answers) for found in data.questions)}

    def compute_content_hash(self, data: SampledAnswers) -> str:
        """Return the sha256 of all answers."""
        return data.answers_digest


class VerifierReportMaterializer(FolderMaterializer):
    """Stores the report of a run. The dashboard shows it as an HTML page."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (VerifierReport,)

    def extract_metadata(self, data: VerifierReport) -> dict[str, MetadataType]:
        """Return the verdict."""
        return {"verdict": data.verdict}

    def save_visualizations(self, data: VerifierReport) -> dict[str, VisualizationType]:
        """Write the HTML page and return its location."""
        return self.save_page(verifier_page(data))

    def compute_content_hash(self, data: VerifierReport) -> str:
        """Return the sha256 of the whole report."""
        return hashlib.sha256(data.model_dump_json().encode()).hexdigest()
