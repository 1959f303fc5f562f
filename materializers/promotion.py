"""Materializers of the champion, of an earlier rejection of the candidate, and of the decision whether a new model replaces it."""

from typing import Any, ClassVar

from materializers.records import RecordMaterializer
from posttrain.evaluation.gate.champion import Champion
from posttrain.evaluation.gate.decision import Promotion
from posttrain.evaluation.gate.rejection import Rejection


class ChampionMaterializer(RecordMaterializer):
    """Stores which model is in production."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (Champion,)

    def compute_content_hash(self, data: Champion) -> str:
        """Return the model's digest: its version in the registry does not matter to the models that it is compared with."""
        return data.digest or "none"


class PromotionMaterializer(RecordMaterializer):
    """Stores the decision."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (Promotion,)


class RejectionMaterializer(RecordMaterializer):
    """Stores whether the candidate was taken out of production before."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (Rejection,)
