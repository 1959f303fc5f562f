"""How artifacts are stored, hashed, summarised and shown on the dashboard. Nothing is pickled.

Every materializer hashes the content, so a step that ran again and gave the same leaves what follows in the cache.
"""

from materializers.checkpoint import CheckpointMaterializer
from materializers.data_report import ReportMaterializer
from materializers.evaluation import EvaluationMaterializer
from materializers.generations import GenerationsMaterializer
from materializers.pair_sets import PairSetsMaterializer
from materializers.preferences import InstructionsMaterializer, PreferencesMaterializer
from materializers.records import RecordMaterializer
from materializers.reference import ReferenceLogpsMaterializer
from materializers.report import RunReportMaterializer
from materializers.sweep import SweepOutcomeMaterializer, SweepPointMaterializer

__all__ = [
    "CheckpointMaterializer",
    "EvaluationMaterializer",
    "GenerationsMaterializer",
    "InstructionsMaterializer",
    "PairSetsMaterializer",
    "PreferencesMaterializer",
    "RecordMaterializer",
    "ReferenceLogpsMaterializer",
    "ReportMaterializer",
    "RunReportMaterializer",
    "SweepOutcomeMaterializer",
    "SweepPointMaterializer",
]
