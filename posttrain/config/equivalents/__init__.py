"""Settings of TRL, LLaMA-Factory and axolotl, and ours for them. One table for hints, for imports and for the documentation."""

from posttrain.config.equivalents.axolotl_names import AXOLOTL
from posttrain.config.equivalents.entry import Equivalent, Tool, WithoutEquivalent
from posttrain.config.equivalents.hints import hint
from posttrain.config.equivalents.llama_factory_names import LLAMA_FACTORY
from posttrain.config.equivalents.markdown import equivalents_table, equivalents_tables
from posttrain.config.equivalents.tools import TOOLS
from posttrain.config.equivalents.trl_names import TRL

__all__ = [
    "AXOLOTL",
    "LLAMA_FACTORY",
    "TOOLS",
    "TRL",
    "Equivalent",
    "Tool",
    "WithoutEquivalent",
    "equivalents_table",
    "equivalents_tables",
    "hint",
]
