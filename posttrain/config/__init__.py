"""The config of a run: one section for each step, validated before any work starts.

A section is the only config that its steps receive, so changing `dpo.beta` re-runs DPO and the steps after it, and nothing
before it. Validators raise; none of them changes a value.
"""

from posttrain.config.layouts import INSTRUCTION_FORMATS, InstructionFormat, PreferenceFormat
from posttrain.config.load import TOP_LEVEL_KEYS, check_config, load_config, load_document
from posttrain.config.run_config import RunConfig, TrackingSection
from posttrain.config.sections.alerts_section import AlertsSection
from posttrain.config.sections.benchmark_section import BenchmarkSection
from posttrain.config.sections.checkpoints_section import CheckpointsSection
from posttrain.config.sections.collect_section import CollectJudgeSection, CollectSection, PairRuleSection
from posttrain.config.sections.costs_section import CostsSection
from posttrain.config.sections.data_section import DataSection, Source
from posttrain.config.sections.documents_section import DocumentsSection, WriterSection
from posttrain.config.sections.evaluation_section import (
    EndpointSection,
    EvaluationSection,
    GenerationsSection,
    JudgeSection,
)
from posttrain.config.sections.gate_section import GateSection
from posttrain.config.sections.model_section import LoraSection, ModelSection
from posttrain.config.sections.passes import Passes
from posttrain.config.sections.section import Section
from posttrain.config.sections.sweep_section import NOT_SWEPT, Grid, SweepSection, point_label, value_label
from posttrain.config.sections.training_sections import (
    DpoSection,
    Lengths,
    LossType,
    PairSection,
    SftSection,
    TrainSection,
)
from posttrain.config.sections.verifier_section import VerifierSection

__all__ = [
    "INSTRUCTION_FORMATS",
    "NOT_SWEPT",
    "TOP_LEVEL_KEYS",
    "AlertsSection",
    "BenchmarkSection",
    "CheckpointsSection",
    "CollectJudgeSection",
    "CollectSection",
    "CostsSection",
    "DataSection",
    "DocumentsSection",
    "DpoSection",
    "EndpointSection",
    "EvaluationSection",
    "GateSection",
    "GenerationsSection",
    "Grid",
    "InstructionFormat",
    "JudgeSection",
    "Lengths",
    "LoraSection",
    "LossType",
    "ModelSection",
    "PairRuleSection",
    "PairSection",
    "Passes",
    "PreferenceFormat",
    "RunConfig",
    "Section",
    "SftSection",
    "Source",
    "SweepSection",
    "TrackingSection",
    "TrainSection",
    "VerifierSection",
    "WriterSection",
    "check_config",
    "load_config",
    "load_document",
    "point_label",
    "value_label",
]
