"""This project's library, as its pipelines call it: several betas share data and reference, and one is evaluated in full."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gate import Gate
from posttrain.chat.tokenise_data import TokeniseSettings, tokenise_data
from posttrain.config import DataSection, DpoSection, EvaluationSection, Lengths, ModelSection, Source
from posttrain.data.loader import load_preferences
from posttrain.evaluation.evaluated_models import EvaluatedModels
from posttrain.evaluation.scoring import EvaluationData, evaluate
from posttrain.forward.logprobs import score_pairs
from posttrain.models.base import resolve_base
from posttrain.models.checkpoint import Checkpoint
from posttrain.models.loading import load_chat, load_model
from posttrain.training.dpo import train_dpo
from posttrain.training.reference import ReferencePolicy, score_reference
from posttrain.training.trainer import TrainingJob


def run(job: dict[str, Any], gate: Gate) -> dict[str, Any]:
    """Loads, checks, scores the reference, trains, and evaluates what it trained last."""
    case, engine, folder = job["case"], job["engine"], Path(job["folder"])
    data = DataSection(sources=[Source(path=str(folder / "raw"))], validation_size=0.0)
    model = ModelSection.model_validate(
        {
            "base": str(folder / "base"),
            "method": case["method"],
            "precision": engine["dtype"],
            **engine["options"].get("model", {}),
        }
    )
    evaluation = EvaluationSection()
    lengths = Lengths(max_length=case["max_length"], max_prompt_length=case["max_length"])
    base, sft = resolve_base(model), Checkpoint.load(folder / "sft")
    preferences, _ = load_preferences(data)
    tokens = tokenise_data(load_chat(base, model, sft), preferences, None, TokeniseSettings(lengths)).pairs
    reference = score_reference(tokens, ReferencePolicy(sft, base, model), evaluation.tokens_per_batch)
    with tempfile.TemporaryDirectory() as scratch:
        for beta in job["betas"]:
            dpo = DpoSection.model_validate(
                {
                    "beta": beta,
                    "learning_rate": case["learning_rate"],
                    "lr_schedule": "constant",
                    "stop_on_divergence": False,  # no other engine stops, and every one is to take as many steps
                    "batch_size": case["batch_size"],
                    **lengths.model_dump(),
                    **engine["options"].get("dpo", {}),
                }
            )
            training = TrainingJob(base, model, case["seed"], Path(scratch) / f"dpo-{beta}", (gate,))
            trained = train_dpo(reference, sft, dpo, training)
            if len(job["betas"]) > 1:  # as in a sweep, whose validation pairs these are
                policy = load_model(base, model, trained)
                score_pairs(policy, reference.rows("test"), model, evaluation.tokens_per_batch, "test pairs")
        models = EvaluatedModels(base, model, sft, trained)
        evaluate(models, EvaluationData(preferences, tokens, reference), evaluation)
    return {"n_train": len(preferences.train), "n_test": len(preferences.test)}
