"""So that `zenml pipeline run sweep_pipeline` finds the pipeline: a name without a dot must itself be a pipeline."""

import sys

from pipelines.sweep import sweep_pipeline

sys.modules[__name__] = sweep_pipeline  # type: ignore[assignment]
