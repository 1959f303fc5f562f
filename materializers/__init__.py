"""How artifacts are stored, hashed, summarised and shown on the dashboard. Nothing is pickled.

Every materializer hashes the content, so a step that ran again and gave the same leaves what follows in the cache.
"""

from materializers.base import BaseModelMaterializer, ModelSettingsMaterializer
from materializers.checkpoint import CheckpointMaterializer
from materializers.data_report import ReportMaterializer
from materializers.evaluation import EvaluationMaterializer
from materializers.generations import GenerationsMaterializer
from materializers.pair_sets import PairSetsMaterializer
from materializers.preferences import InstructionsMaterializer, PreferencesMaterializer
from materializers.promotion import ChampionMaterializer, PromotionMaterializer
from materializers.records import RecordMaterializer
from materializers.reference import ReferenceLogpsMaterializer
from materializers.report import RunReportMaterializer
from materializers.sweep import SweepOutcomeMaterializer
from materializers.sweep_point import SweepPointMaterializer

__all__ = [
    "BaseModelMaterializer",
    "ChampionMaterializer",
    "CheckpointMaterializer",
    "EvaluationMaterializer",
    "GenerationsMaterializer",
    "InstructionsMaterializer",
    "ModelSettingsMaterializer",
    "PairSetsMaterializer",
    "PreferencesMaterializer",
    "PromotionMaterializer",
    "RecordMaterializer",
    "ReferenceLogpsMaterializer",
    "ReportMaterializer",
    "RunReportMaterializer",
    "SweepOutcomeMaterializer",
    "SweepPointMaterializer",
]
