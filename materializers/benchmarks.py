"""Benchmarks: their items, the scores of each model, and the comparison."""

from typing import Any, ClassVar

from zenml.metadata.metadata_types import MetadataType

from materializers.records import RecordMaterializer
from posttrain.evaluation.benchmarks.benchmark_figures import BenchmarkFigures
from posttrain.evaluation.benchmarks.benchmark_items import BenchmarkItems, BenchmarkScores


class BenchmarkItemsMaterializer(RecordMaterializer):
    """Stores which items the benchmarks have."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (BenchmarkItems,)

    def extract_metadata(self, data: BenchmarkItems) -> dict[str, MetadataType]:
        """Return the number of items of each benchmark, and their digest."""
        return {name: {"n_items": len(found.documents), "digest": found.digest} for name, found in data.tasks.items()}


class BenchmarkScoresMaterializer(RecordMaterializer):
    """Stores the score of each item."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (BenchmarkScores,)

    def extract_metadata(self, data: BenchmarkScores) -> dict[str, MetadataType]:
        """Return the metrics without the items."""
        return {
            name: {metric: scores.value for metric, scores in found.metrics.items()}
            for name, found in data.tasks.items()
        }


class BenchmarkFiguresMaterializer(RecordMaterializer):
    """Stores the comparison."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (BenchmarkFigures,)

    def extract_metadata(self, data: BenchmarkFigures) -> dict[str, MetadataType]:
        """Return the score of each model on each benchmark."""
        return dict(data.key_figures())
