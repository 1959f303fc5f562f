"""Makes the files that transformers 5 writes readable by transformers 4, vLLM and llama.cpp's converter.

What these look at, and where transformers 5 alone would leave them with wrong values or an error:

- rope: releases before transformers 5 read `rope_theta`, `rope_scaling` and `partial_rotary_factor` at the top level, and take
  the family's defaults if they are missing. transformers 5 nests them in `rope_parameters`.
- `torch_dtype`: the name of `dtype` before transformers 4.56.
- `tokenizer_class`: `TokenizersBackend` exists only in transformers 5. `PreTrainedTokenizerFast` reads the same `tokenizer.json`
  in every release.
- `extra_special_tokens`: transformers 4 fails on a list; the list's name there is `additional_special_tokens`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

OF_THIS_MACHINE = ("_name_or_path", "name_or_path", "is_local", "local_files_only", "tokenizer_file", "vocab_file")
"""Keys that say where the files were loaded from."""
LOCAL_THETA = {"gemma3_text": "rope_local_base_freq", "gemma3n_text": "rope_local_base_freq"}
"""Name of the sliding layers' rope theta by model type, where it differs from that of the other layers."""


def make_portable(folder: Path) -> None:
    """Rewrite the configs in the folder of an export."""
    for name, rewrite in (("config.json", portable_config), ("tokenizer_config.json", _portable_tokenizer)):
        path = folder / name
        if path.is_file():
            content = rewrite(json.loads(path.read_text(encoding="utf-8")))
            path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def portable_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return a model config with the rope settings in both places, and without what only this machine knows."""
    kept = {key: value for key, value in config.items() if key not in OF_THIS_MACHINE}
    for name in ("text_config", "llm_config"):
        if isinstance(kept.get(name), dict):
            kept[name] = portable_config(kept[name])
    if "dtype" in kept:
        kept.setdefault("torch_dtype", kept["dtype"])
    return {**kept, **_older_rope(kept)}


def _older_rope(config: dict[str, Any]) -> dict[str, Any]:
    """Return the rope settings under their names before transformers 5; nothing if the model has none."""
    rope, kind = config.get("rope_parameters") or {}, config.get("model_type")
    local = rope.get("sliding_attention")
    rope = rope.get("full_attention", rope)
    if not isinstance(rope, dict) or "rope_theta" not in rope:
        return {}
    if kind in ("gpt_neox", "gpt_neox_japanese"):
        older = {"rotary_emb_base": rope["rope_theta"], "rotary_pct": rope["partial_rotary_factor"]}
    else:
        older = {"rope_theta": rope["rope_theta"]}
        if "partial_rotary_factor" in rope:
            older["partial_rotary_factor"] = rope["partial_rotary_factor"]
    if local and kind in LOCAL_THETA:
        older[LOCAL_THETA[kind]] = local["rope_theta"]
    scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
    if scaling.get("rope_type", "default") == "default":
        return older
    if kind == "phi3":  # accepts these three alone
        names = {"type": "rope_type", "short_factor": "short_factor", "long_factor": "long_factor"}
        scaling = {older_name: scaling[name] for older_name, name in names.items()}
    return {**older, "rope_scaling": scaling}


def _portable_tokenizer(config: dict[str, Any]) -> dict[str, Any]:
    """Return a tokenizer config that transformers 4 loads."""
    kept = {key: value for key, value in config.items() if key not in OF_THIS_MACHINE}
    if kept.get("tokenizer_class") == "TokenizersBackend":
        kept["tokenizer_class"] = "PreTrainedTokenizerFast"
        kept.pop("backend", None)
    if isinstance(kept.get("extra_special_tokens"), list):
        kept["additional_special_tokens"] = kept.pop("extra_special_tokens")
    return kept
