"""So that `zenml pipeline run dpo_pipeline` finds the pipeline: a name without a dot must itself be a pipeline."""

import sys

from pipelines.dpo import dpo_pipeline

sys.modules[__name__] = dpo_pipeline  # type: ignore[assignment]
