"""LLaMA-Factory 0.9.5, in its own virtual environment: nothing of this project but the gate is imported here."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from llamafactory.train.tuner import run_exp

from benchmarks.gate import Gate


def run(job: dict[str, Any], gate: Gate) -> dict[str, Any]:
    """Loads, tokenises, trains, saves and evaluates."""
    case, engine, folder = job["case"], job["engine"], Path(job["folder"])
    (beta,) = job["betas"]
    columns = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
    about = {s: {"file_name": f"{s}.jsonl", "ranking": True, "columns": columns} for s in ("train", "test")}
    (folder / "text" / "dataset_info.json").write_text(json.dumps(about), encoding="utf-8")
    adapter = {"adapter_name_or_path": str(folder / "sft")} if case["method"] == "lora" else {}
    with tempfile.TemporaryDirectory() as output:
        run_exp(
            {
                "stage": "dpo",
                "do_train": True,
                "do_eval": True,
                "model_name_or_path": str(folder / "base"),
                "finetuning_type": case["method"],
                **adapter,
                "pref_loss": "sigmoid",
                "pref_beta": beta,
                "dataset_dir": str(folder / "text"),
                "dataset": "train",
                "eval_dataset": "test",
                "template": "empty",
                "cutoff_len": case["max_length"],
                "disable_shuffling": True,
                "output_dir": output,
                "per_device_train_batch_size": case["batch_size"],
                "per_device_eval_batch_size": 8,
                "learning_rate": case["learning_rate"],
                "lr_scheduler_type": "constant",
                "num_train_epochs": 1.0,
                "logging_steps": 1,
                "save_strategy": "no",
                "report_to": "none",
                "use_cpu": True,
                "disable_gradient_checkpointing": True,
                "bf16": engine["dtype"] == "bf16",
                "seed": case["seed"],
                **engine["options"],
            },
            callbacks=[gate],
        )
    return {"n_train": case["batch_size"] * case["n_steps"], "n_test": case["n_test"]}
