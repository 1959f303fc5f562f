"""TRL's DPOTrainer on text, as its documentation shows it, with what the case fixes for every engine."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from benchmarks.gate import Gate


def run(job: dict[str, Any], gate: Gate) -> dict[str, Any]:
    """Loads, tokenises, trains, saves and evaluates."""
    case, engine, folder = job["case"], job["engine"], Path(job["folder"])
    (beta,) = job["betas"]
    rows = load_dataset("json", data_files={s: str(folder / "text" / f"{s}.jsonl") for s in ("train", "test")})
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    if case["method"] == "lora":
        model = PeftModel.from_pretrained(model, folder / "sft", is_trainable=True)
    with tempfile.TemporaryDirectory() as output:
        trainer = DPOTrainer(
            model=model,
            args=DPOConfig(
                output_dir=output,
                beta=beta,
                learning_rate=case["learning_rate"],
                lr_scheduler_type="constant",
                num_train_epochs=1,
                per_device_train_batch_size=case["batch_size"],
                max_length=case["max_length"],
                bf16=engine["dtype"] == "bf16",
                use_cpu=not torch.cuda.is_available(),
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                seed=case["seed"],
                **engine["options"],
            ),
            train_dataset=rows["train"],
            eval_dataset=rows["test"],
            processing_class=AutoTokenizer.from_pretrained(folder / "base"),
            callbacks=[gate],
        )
        n_train, n_test = len(trainer.train_dataset), len(trainer.eval_dataset)
        trainer.train()
        trainer.save_model()
        trainer.evaluate()
    return {"n_train": n_train, "n_test": n_test}
