"""So that `zenml pipeline run verifier_pipeline` finds the pipeline: a name without a dot must itself be a pipeline."""

import sys

from pipelines.verifier import verifier_pipeline

sys.modules[__name__] = verifier_pipeline  # type: ignore[assignment]
