"""The model card of an exported model, written only from the records of its training and evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from posttrain.data.report import DataReport
from posttrain.evaluation.figures import Figures
from posttrain.evaluation.intervals import Estimate
from posttrain.evaluation.labels import METRICS, STAGES, percent, sample_size
from posttrain.models.checkpoint import Manifest
from posttrain.reporting.html import render
from posttrain.reporting.run_report import Lineage, RunReport

TASKS = {"verifier": "SequenceClassification"}
"""transformers' name of a stage's task, where it is not CausalLM."""
CARD_METRICS = ("likelihood_accuracy", "normalised_accuracy", "implicit_accuracy")


def model_card(
    name: str,
    manifest: Manifest,
    report: RunReport | None = None,
    *,
    adapter: bool,
) -> ModelCard:
    """Return a card with valid Hub metadata. It contains no row of the data and no path of this machine.

    Args:
        name: of the model.
        report: of the run that trained and evaluated the model.
        adapter: whether the weights are an adapter that needs its base model.
    """
    results = list(_results(manifest.stage, report)) if report else []
    metadata = ModelCardData(
        base_model=manifest.base.id if manifest.base.revision else None,  # only models on the Hub have one
        datasets=(_hub_datasets(report.data) or None) if report else None,
        eval_results=results or None,
        library_name="peft" if adapter else "transformers",
        model_name=name,
        pipeline_tag="text-classification" if manifest.stage == "verifier" else "text-generation",
        tags=["trl", manifest.stage, *(["lora"] if adapter else [])],
    )
    text = render(
        "model_card.md.jinja",
        name=name,
        verdict=report.verdict if report else "",
        base=_shown(manifest.base.id),
        stages={"sft": "SFT", "dpo": "SFT and DPO", "verifier": "training as a verifier, a reward model"}[
            manifest.stage
        ],
        is_verifier=manifest.stage == "verifier",
        library="peft" if adapter else "transformers",
        model_class=f"{'AutoPeftModel' if adapter else 'AutoModel'}For{TASKS.get(manifest.stage, 'CausalLM')}",
        evaluation=_evaluation(report.figures) if report else None,
        data=_data(report.data) if report else None,
        settings=_settings(report.lineage) if report else "",
        origin=_origin(manifest, report.lineage if report else None),
    )
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{text}")


def _evaluation(figures: Figures) -> dict[str, Any]:
    present = {stage: found for stage, found in figures.stages.items() if found}
    rows = [
        [METRICS[metric].name, *(percent(getattr(found, metric)) for found in present.values())]
        for metric in CARD_METRICS
    ]
    return {
        "intro": f"{sample_size(figures, 'held-out preference ')}; accuracies in % with {figures.confidence:.0%} intervals.",
        "stages": [STAGES[stage] for stage in present],
        "rows": rows,
    }


def _data(data: DataReport) -> dict[str, Any]:
    splits = ", ".join(f"{n} {split}" for split, n in data.splits.items())
    sources = [
        f"{_shown(source.path)}{f' at `{source.revision}`' if source.revision else ''}: {source.n_read} rows ({source.format})"
        for source in data.sources
    ]
    return {"intro": f"{data.n_kept} of {data.n_read} rows were used ({splits}).", "sources": sources}


def _settings(lineage: Lineage) -> str:
    """Return the settings of the training as YAML, without those that name places (data, checkpoints)."""
    config = lineage.config
    shown = {
        "seed": config["seed"],
        "model": {key: config["model"][key] for key in ("method", "lora", "precision")},
        "sft": {key: value for key, value in config["sft"].items() if key != "dataset"},
        "dpo": {key: value for key, value in config["dpo"].items() if key not in ("start", "sft_checkpoint")},
    }
    return yaml.safe_dump(shown, sort_keys=False)


def _origin(manifest: Manifest, lineage: Lineage | None) -> dict[str, str]:
    rows = {
        "base": f"{_shown(manifest.base.id)} ({manifest.base.revision or manifest.base.digest})",
        "model": manifest.digest,
        "parent": manifest.parent or "the base",
    }
    if lineage:
        versions = ", ".join(f"{package} {version}" for package, version in lineage.versions.items())
        rows |= {"run": lineage.run, "data": lineage.data, "code": lineage.code, "packages": versions}
    return rows


def _results(stage: str, report: RunReport) -> Iterator[EvalResult]:
    hub = _hub_datasets(report.data)
    for metric in CARD_METRICS:
        estimate: Estimate | None = getattr(report.figures.stages[stage], metric)
        if estimate is not None:
            yield EvalResult(
                task_type="text-generation",
                task_name="Preference ranking",
                dataset_type=hub[0] if len(hub) == 1 else "preferences",
                dataset_name=hub[0] if len(hub) == 1 else "Held-out preference pairs",
                dataset_split="test",
                metric_type="accuracy",
                metric_name=METRICS[metric].name,
                metric_value=round(estimate.value, 4),
            )


def _hub_datasets(data: DataReport) -> list[str]:
    """Return the sources that are datasets on the Hub: only these have a revision."""
    return [source.path for source in data.sources if source.revision]


def _shown(place: str) -> str:
    """Return a name that may be published: of a path only its last part."""
    return place.rstrip("/").rsplit("/", 1)[-1] if place.startswith(("/", ".", "~")) or place.count("/") > 1 else place
