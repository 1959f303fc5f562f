"""Materializers: how artifacts are stored, hashed, summarised and shown on the dashboard. Nothing is pickled.

Every materializer hashes the content. If a step runs again and gives the same content, the steps that follow stay cached.
"""

from materializers.base import BaseModelMaterializer, ModelSettingsMaterializer
from materializers.benchmarks import (
    BenchmarkFiguresMaterializer,
    BenchmarkItemsMaterializer,
    BenchmarkScoresMaterializer,
)
from materializers.checkpoint import CheckpointMaterializer
from materializers.collected import CollectedPreferencesMaterializer
from materializers.data_report import ReportMaterializer
from materializers.evaluation import EvaluationMaterializer
from materializers.generations import GenerationsMaterializer
from materializers.pair_sets import PairSetsMaterializer
from materializers.preferences import InstructionsMaterializer, PreferencesMaterializer
from materializers.promotion import ChampionMaterializer, PromotionMaterializer, RejectionMaterializer
from materializers.records import RecordMaterializer
from materializers.reference import ReferenceLogpsMaterializer
from materializers.report import RunReportMaterializer
from materializers.sweep import SweepOutcomeMaterializer
from materializers.sweep_point import SweepPointMaterializer
from materializers.tokens import TokensMaterializer
from materializers.verifier import (
    SampledAnswersMaterializer,
    VerifierEvaluationMaterializer,
    VerifierReportMaterializer,
)

__all__ = [
    "BaseModelMaterializer",
    "BenchmarkFiguresMaterializer",
    "BenchmarkItemsMaterializer",
    "BenchmarkScoresMaterializer",
    "ChampionMaterializer",
    "CheckpointMaterializer",
    "CollectedPreferencesMaterializer",
    "EvaluationMaterializer",
    "GenerationsMaterializer",
    "InstructionsMaterializer",
    "ModelSettingsMaterializer",
    "PairSetsMaterializer",
    "PreferencesMaterializer",
    "PromotionMaterializer",
    "RecordMaterializer",
    "ReferenceLogpsMaterializer",
    "RejectionMaterializer",
    "ReportMaterializer",
    "RunReportMaterializer",
    "SampledAnswersMaterializer",
    "SweepOutcomeMaterializer",
    "SweepPointMaterializer",
    "TokensMaterializer",
    "VerifierEvaluationMaterializer",
    "VerifierReportMaterializer",
]
