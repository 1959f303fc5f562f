"""Conversions of settings of the DPO loss."""

from __future__ import annotations

from typing import Any

from posttrain.config.equivalents.conversions import Settings, same
from posttrain.config.equivalents.entry import Equivalent
from posttrain.config.equivalents.fates import Fate, NotCarriedOver, NotNeeded, Reading

SMOOTHED = {"robust", "exo_pair", "aot", "aot_unpaired"}
"""Losses on which label_smoothing has an effect in TRL 1.16."""


def losses(reading: Reading) -> list[str]:
    """Return the file's losses by our names, including an SFT term added by another setting."""
    value = next((reading.get(name) for name in ("loss_type", "pref_loss", "dpo_loss_type") if reading.get(name)), None)
    if value is None:
        value = "ipo" if reading.get("rl") == "ipo" else "sigmoid"
    names = [{"aot_pair": "aot"}.get(name, name) for name in ([value] if isinstance(value, str) else value)]
    return [*names, "sft"] if sft_share(reading) else names


def sft_share(reading: Reading) -> float:
    """Return the weight of an SFT term that is added to the preference loss."""
    return float(reading.get("rpo_alpha", reading.get("pref_ftx", 0.0)))


def _settings(reading: Reading) -> Settings:
    names = losses(reading)
    settings: Settings = {"dpo.loss_type": names[0] if len(names) == 1 else names}
    weights = reading.get("loss_weights", reading.get("dpo_loss_weights"))
    share = sft_share(reading)
    if weights is not None or share:
        weights = list(weights) if weights is not None else [1.0] * (len(names) - bool(share))
        settings["dpo.loss_weights"] = [*weights, share] if share else weights
    return settings


def loss_type(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """Return dpo.loss_type; each loss must be supported."""
    for name in [value] if isinstance(value, str) else value:
        if entry.values:
            same(name, entry, reading)
    return {key: found for key, found in _settings(reading).items() if key == "dpo.loss_type"}


def loss_weights(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """One weight for each loss."""
    return {key: found for key, found in _settings(reading).items() if key == "dpo.loss_weights"}


def sft_weight(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """The SFT term as one more loss, and its weight."""
    if not value:
        raise NotNeeded("is off")
    return _settings(reading)


def label_smoothing(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """Return dpo.label_smoothing, if the loss uses it."""
    names = losses(reading)
    if not value:
        return {entry.ours: 0.0}
    if not SMOOTHED & set(names):
        raise NotCarriedOver(
            f"loss {'+'.join(names)} ignores label smoothing in TRL 1.16; to correct for flipped labels, set dpo.loss_type: robust"
        )
    return {entry.ours: value}


def rl(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """Return dpo.loss_type, if axolotl's `rl` names a loss."""
    if value == "ipo":
        return {entry.ours: "ipo"}
    raise NotNeeded("the pipeline trains DPO")


def stage(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """Always raises, because the pipeline trains DPO."""
    raise NotNeeded("the pipeline trains DPO")


def axolotl_trl(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """Return dpo.beta from axolotl's section `trl`, whose other settings belong to GRPO."""
    if not isinstance(value, dict) or value.get("beta") is None:
        raise NotNeeded("its settings are those of GRPO")
    reading.inner.extend(
        Fate(f"trl.{name}", other, "not needed", reason="belongs to GRPO")
        for name, other in value.items()
        if name != "beta"
    )
    return {entry.ours: value["beta"]}
