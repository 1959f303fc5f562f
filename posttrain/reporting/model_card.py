"""The model card of an exported model, written from what is known of it and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from posttrain.data.report import DataReport
from posttrain.evaluation.figures import Figures
from posttrain.evaluation.intervals import Estimate
from posttrain.models.checkpoint import Manifest
from posttrain.reporting.run_report import Lineage, RunReport

METRICS = {
    "likelihood_accuracy": "preference accuracy",
    "normalised_accuracy": "preference accuracy per token",
    "implicit_accuracy": "implicit-reward accuracy",
}
STAGES = {"base": "base", "sft": "SFT", "dpo": "DPO", "champion": "champion"}


def model_card(
    name: str,
    manifest: Manifest,
    report: RunReport | None = None,
    *,
    adapter: bool,
) -> ModelCard:
    """A card with valid Hub metadata. No row of the data and no path of this machine is in it.

    Args:
        name: of the model.
        report: of the run that made and judged the model.
        adapter: whether the weights are an adapter, still to be put on its base.
    """
    results = list(_results(manifest.stage, report)) if report else []
    metadata = ModelCardData(
        base_model=manifest.base.id if manifest.base.revision else None,  # only what is on the Hub has one
        datasets=(_hub_datasets(report.data) or None) if report else None,
        eval_results=results or None,
        library_name="peft" if adapter else "transformers",
        model_name=name,
        pipeline_tag="text-generation",
        tags=["trl", manifest.stage, *(["lora"] if adapter else [])],
    )
    stages = "SFT" if manifest.stage == "sft" else "SFT and DPO"
    parts = [
        f"# {name}",
        report.verdict if report else "",
        f"{_shown(manifest.base.id)} after {stages}, trained with TRL by posttrain.",
        _usage(adapter),
        *([_evaluation(report.figures), _data(report.data), _settings(report.lineage)] if report else []),
        _origin(manifest, report.lineage if report else None),
    ]
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(filter(None, parts)) + "\n")


def _usage(adapter: bool) -> str:
    library, model = ("peft", "AutoPeftModelForCausalLM") if adapter else ("transformers", "AutoModelForCausalLM")
    return f"""## Use

```python
from {library} import {model}
from transformers import AutoTokenizer, pipeline

model, tokenizer = {model}.from_pretrained(PATH), AutoTokenizer.from_pretrained(PATH)
answer = pipeline("text-generation", model=model, tokenizer=tokenizer)
answer([{{"role": "user", "content": "Hello"}}])
```

The chat template comes with the tokenizer, the stop tokens with `generation_config.json`; `sha256sum -c SHA256SUMS` checks
the files."""


def _evaluation(figures: Figures) -> str:
    present = {stage: found for stage, found in figures.stages.items() if found}
    lines = [
        f"## Evaluation\n\n{figures.n_pairs} held-out preference pairs, in %, with {figures.confidence:.0%} intervals.\n",
        f"| | {' | '.join(STAGES[stage] for stage in present)} |",
        f"|---{'|---:' * len(present)}|",
    ]
    for metric, label in METRICS.items():
        lines.append(f"| {label} | {' | '.join(_cell(getattr(found, metric)) for found in present.values())} |")
    return "\n".join(lines)


def _data(data: DataReport) -> str:
    splits = ", ".join(f"{n} {split}" for split, n in data.splits.items())
    sources = "\n".join(
        f"- {_shown(source.path)}{f' at `{source.revision}`' if source.revision else ''}: {source.n_read} rows ({source.format})"
        for source in data.sources
    )
    return f"## Data\n\n{data.n_kept} of {data.n_read} rows were used ({splits}).\n\n{sources}"


def _settings(lineage: Lineage) -> str:
    """The settings of the training; what names places (data, checkpoints) is left out."""
    config = lineage.config
    shown = {
        "seed": config["seed"],
        "model": {key: config["model"][key] for key in ("method", "lora", "precision")},
        "sft": {key: value for key, value in config["sft"].items() if key != "dataset"},
        "dpo": {key: value for key, value in config["dpo"].items() if key != "sft_checkpoint"},
    }
    return f"## Settings\n\n```yaml\n{yaml.safe_dump(shown, sort_keys=False)}```"


def _origin(manifest: Manifest, lineage: Lineage | None) -> str:
    rows: dict[str, Any] = {
        "base": f"{_shown(manifest.base.id)} ({manifest.base.revision or manifest.base.digest})",
        "model": manifest.digest,
        "parent": manifest.parent or "the base",
    }
    if lineage:
        versions = ", ".join(f"{package} {version}" for package, version in lineage.versions.items())
        rows |= {"run": lineage.run, "data": lineage.data, "code": lineage.code, "packages": versions}
    return "## Origin\n\n| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def _results(stage: str, report: RunReport) -> Iterator[EvalResult]:
    hub = _hub_datasets(report.data)
    for metric, label in METRICS.items():
        estimate: Estimate | None = getattr(report.figures.stages[stage], metric)
        if estimate is not None:
            yield EvalResult(
                task_type="text-generation",
                task_name="Preference ranking",
                dataset_type=hub[0] if len(hub) == 1 else "preferences",
                dataset_name=hub[0] if len(hub) == 1 else "Held-out preference pairs",
                dataset_split="test",
                metric_type="accuracy",
                metric_name=label,
                metric_value=round(estimate.value, 4),
            )


def _hub_datasets(data: DataReport) -> list[str]:
    """The sources that are datasets on the Hub: only these have a revision."""
    return [source.path for source in data.sources if source.revision]


def _shown(place: str) -> str:
    """A name as anyone may read it: of a path only its last part."""
    return place.rstrip("/").rsplit("/", 1)[-1] if place.startswith(("/", ".", "~")) or place.count("/") > 1 else place


def _cell(estimate: Estimate | None) -> str:
    return f"{100 * estimate.value:.1f} ({100 * estimate.low:.1f}-{100 * estimate.high:.1f})" if estimate else "-"
