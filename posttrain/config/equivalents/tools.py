"""All tools, and all functions that convert a value."""

from __future__ import annotations

from posttrain.config.equivalents import conversions, dataset_conversions, loss_conversions
from posttrain.config.equivalents.axolotl_names import AXOLOTL
from posttrain.config.equivalents.conversions import Rule
from posttrain.config.equivalents.entry import Equivalent, Tool
from posttrain.config.equivalents.llama_factory_names import LLAMA_FACTORY
from posttrain.config.equivalents.trl_names import TRL

TOOLS: dict[str, Tool] = {tool.key: tool for tool in (TRL, LLAMA_FACTORY, AXOLOTL)}
"""By key, in the order in which a name is looked up."""


def rule_of(entry: Equivalent) -> Rule:
    """The function that converts the values of a setting."""
    if not entry.rule:
        return conversions.same
    for module in (conversions, loss_conversions, dataset_conversions):
        if entry.rule in vars(module):
            rule: Rule = vars(module)[entry.rule]
            return rule
    raise LookupError(f"{entry.name}: no conversion is called {entry.rule}")
