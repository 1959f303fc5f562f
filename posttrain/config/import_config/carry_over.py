"""Converts a DPO config of TRL, LLaMA-Factory or axolotl to ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from posttrain.config.equivalents.entry import Equivalent, Tool, WithoutEquivalent
from posttrain.config.equivalents.fates import Fate, NotCarriedOver, NotNeeded, Reading
from posttrain.config.equivalents.tools import rule_of
from posttrain.config.explain import explain
from posttrain.config.import_config.config_text import config_text, nested
from posttrain.config.import_config.read_source import read_source
from posttrain.config.run_config import RunConfig
from posttrain.errors import UserError

SFT_LEARNING_RATE_FULL = 1e-5
"""Learning rate of SFT for full fine-tuning in an imported config, since the file does not contain one."""
OFF: tuple[Any, ...] = (False, "", [], {}, "none", "no")
"""Values that switch off a setting."""


@dataclass(frozen=True)
class Added:
    """A setting that the import added because the file does not have it."""

    setting: str
    value: Any
    reason: str


@dataclass(frozen=True)
class ImportedConfig:
    """A config of another tool as one of ours."""

    tool: Tool
    text: str
    """Our YAML file."""
    config: RunConfig
    """The text as a checked config."""
    fates: tuple[Fate, ...]
    """The outcome for each setting, in the order of the file."""
    added: tuple[Added, ...]

    @property
    def carried_over(self) -> list[Fate]:
        """Settings that have an equivalent in the text."""
        return [fate for fate in self.fates if fate.outcome == "carried over"]

    @property
    def not_needed(self) -> list[Fate]:
        """Return settings that can be left out without any loss."""
        return [fate for fate in self.fates if fate.outcome == "not needed"]

    @property
    def not_carried_over(self) -> list[Fate]:
        """Settings whose effect is lost."""
        return [fate for fate in self.fates if fate.outcome == "not carried over"]


def import_config(source: str | Path | Mapping[str, Any], tool: str = "auto") -> ImportedConfig:
    """Return our config with the settings of another tool's config.

    Args:
        source: a DPO config of TRL, LLaMA-Factory or axolotl, as the path of a YAML file or as its content.
        tool: `trl`, `llama-factory`, `axolotl`, or `auto` to recognise it by the settings' names.

    Raises:
        UserError: the file is not a DPO config, or it is not clear of which tool it is.
    """
    where = "config" if isinstance(source, Mapping) else str(source)
    return _Import(read_source(source, tool, where), where).result()


class _Import:
    """One import, step by step."""

    def __init__(self, reading: Reading, where: str) -> None:
        self.reading, self.where = reading, where
        self.settings: dict[str, Any] = {}
        self.comments: dict[str, list[str]] = {}
        self.fates: list[Fate] = []
        self.added: list[Added] = []

    def result(self) -> ImportedConfig:
        for key, value in self.reading.settings.items():
            self._take(key, value)
        self._add_defaults()
        self._add_stages()
        config = self._check()
        for fate in self.fates:
            # Settings inside a source are explained in the report only; the YAML has no place for their comments.
            if fate.settings and fate.reason and not fate.settings[0].startswith("data.sources[]"):
                self._comment(fate.settings[0], fate.reason)
        for added in self.added:
            self._comment(added.setting, added.reason)
        tool = self.reading.tool
        header = [f"Imported from {tool.name}'s {Path(self.where).name} by `posttrain import-config`."]
        text = config_text(self.settings, self.comments, header, self.fates)
        return ImportedConfig(tool, text, config, tuple(self.fates), tuple(self.added))

    def _take(self, key: str, value: Any) -> None:
        """Carry one setting over, or record why not."""
        entry = self.reading.tool.find(key)
        if not isinstance(entry, Equivalent):
            self.fates.append(_fate_without_equivalent(key, value, entry, self.reading.tool))
            return
        if value is None:
            reason = f"null means {entry.null}, and {entry.ours} keeps its default" if entry.null else "is empty"
            self.fates.append(Fate(key, value, "not carried over" if entry.null else "not needed", reason=reason))
            return
        try:
            converted = self._convert(entry, value)
        except NotNeeded as error:
            self.fates.append(Fate(key, value, "not needed", reason=str(error)))
        except NotCarriedOver as error:
            self.fates.append(Fate(key, value, "not carried over", reason=str(error)))
        else:
            self.settings.update(converted)
            self.fates.append(
                Fate(key, value, "carried over", tuple(converted), _difference(entry, value, self.reading))
            )
            self._note_prompt_limit(converted)
        self.fates.extend(self.reading.inner)
        self.reading.inner.clear()

    def _convert(self, entry: Equivalent, value: Any) -> dict[str, Any]:
        try:
            return rule_of(entry)(value, entry, self.reading)
        except (TypeError, ValueError, AttributeError) as error:
            raise NotCarriedOver(f"its value is not valid, and {entry.ours} keeps its default") from error

    def _note_prompt_limit(self, converted: dict[str, Any]) -> None:
        if "dpo.max_length" in converted and "dpo.max_prompt_length" in converted:
            reason = (
                f"{self.reading.tool.name}'s file has no separate limit for prompts, so max_length applies to them too: pairs "
                "whose prompt fills it are dropped and counted. Lower it to leave room for the response."
            )
            self.added.append(Added("dpo.max_prompt_length", converted["dpo.max_prompt_length"], reason))

    def _add_defaults(self) -> None:
        """Add the tool's defaults that differ from ours."""
        tool = self.reading.tool
        for entry in tool.equivalents:
            known = self.reading.settings.get(entry.name) is not None or (
                entry.null and entry.name in self.reading.settings
            )
            if entry.default is None or known or entry.ours in self.settings:
                continue
            try:
                converted = self._convert(entry, entry.default)
            except (NotCarriedOver, NotNeeded):
                continue
            self.settings.update(converted)
            self.added.append(
                Added(entry.ours, converted[entry.ours], f"{tool.name}'s default; the file does not set it.")
            )
            self._note_prompt_limit(converted)

    def _add_stages(self) -> None:
        """Add the stages to run and the settings of SFT, which the file does not contain."""
        tool, method = self.reading.tool, self.settings.get("model.method", "full")
        if tool.key == "trl" and method != "full" and "model.lora.target_modules" not in self.settings:
            reason = "TRL lets PEFT choose the layers, usually q_proj and v_proj."
            self._add("model.lora.target_modules", "all-linear", reason)
        self._add("name", "dpo", "Name of the model in the registry: choose one for each task.")
        self._add(
            "finetuning_type",
            "both",
            f"{tool.name} starts DPO at the base model. This pipeline trains SFT first, by default on the chosen responses, and "
            "starts DPO at that checkpoint. To start DPO at an instruct model or an existing checkpoint, set finetuning_type: "
            "dpo and dpo.start, and remove the section sft.",
        )
        copied = (
            "batch_size",
            "gradient_accumulation_steps",
            "max_length",
            "optimizer",
            "gradient_checkpointing",
            "sharding",
        )
        sft = {f"sft.{name}": self.settings[f"dpo.{name}"] for name in copied if f"dpo.{name}" in self.settings}
        if method == "full":
            sft = {"sft.learning_rate": SFT_LEARNING_RATE_FULL, **sft}
        self.settings.update(sft)
        self.added.append(
            Added(
                "sft",
                sft,
                f"the {tool.name} file has no SFT settings; batch size, lengths and the like are copied from dpo.",
            )
        )

    def _add(self, setting: str, value: Any, reason: str) -> None:
        self.settings[setting] = value
        self.added.append(Added(setting, value, reason))

    def _comment(self, setting: str, text: str) -> None:
        if text not in self.comments.setdefault(setting, []):
            self.comments[setting].append(text)

    def _check(self) -> RunConfig:
        """Return the checked config; a value that is not allowed is removed and listed as not carried over."""
        while True:
            try:
                return RunConfig.model_validate(nested(self.settings))
            except ValidationError as error:
                wrong = [explain(item, RunConfig) for item in error.errors()]
            refused = {setting: message for key, message in wrong if (setting := self._setting_at(key))}
            if not refused or {"model.base", "data.sources"} & refused.keys():
                key, message = wrong[0]
                raise UserError(f"{self.where}: cannot be carried over as a whole: {key}: {message}")
            for setting, message in refused.items():
                self._take_out(setting, message)

    def _setting_at(self, key: str) -> str | None:
        """The carried setting that an error is about."""
        carried = {setting for fate in self.fates for setting in fate.settings} & self.settings.keys()
        return next((setting for setting in carried if key == setting or key.startswith(f"{setting}.")), None)

    def _take_out(self, setting: str, message: str) -> None:
        del self.settings[setting]
        self.settings.pop(setting.replace("dpo.", "sft.", 1), None)
        self.added = [added for added in self.added if added.setting != setting]
        for i, fate in enumerate(self.fates):
            if setting in fate.settings:
                reason = f"{setting}: {message}"
                self.fates[i] = replace(fate, outcome="not carried over", settings=(), reason=reason)


def _difference(entry: Equivalent, value: Any, reading: Reading) -> str:
    """Return the comment for a setting that was carried over."""
    text = entry.difference if entry.comment is None else entry.comment
    own = entry.value_differences.get(value, "") if isinstance(value, str) else ""
    sentences = [part.rstrip(".") + "." for part in (text, own) if part]
    return " ".join(sentences).replace("{tool}", reading.tool.name)


def _fate_without_equivalent(key: str, value: Any, entry: WithoutEquivalent | None, tool: Tool) -> Fate:
    if entry is None:
        return Fate(key, value, "not carried over", reason=f"is not a known setting of {tool.name}")
    if not entry.needed:
        return Fate(key, value, "not needed", reason=entry.reason)
    off = entry.same or OFF
    if value is None or any(type(value) is type(other) and value == other for other in off):
        return Fate(key, value, "not needed", reason="has no effect, as here")
    return Fate(key, value, "not carried over", reason=entry.reason)
