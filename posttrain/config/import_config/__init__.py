"""From a DPO config of TRL, LLaMA-Factory or axolotl to one of ours, with what became of each setting."""

from posttrain.config.import_config.carry_over import Added, ImportedConfig, import_config
from posttrain.config.import_config.config_text import summary_lines

__all__ = ["Added", "ImportedConfig", "import_config", "summary_lines"]
