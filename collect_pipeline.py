"""So that `zenml pipeline run collect_pipeline` finds the pipeline: a name without a dot must itself be a pipeline."""

import sys

from pipelines.collect import collect_pipeline

sys.modules[__name__] = collect_pipeline  # type: ignore[assignment]
