"""Which stored data has a row, and which models were trained on it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from uuid import UUID

from datasets import Dataset
from zenml.client import Client
from zenml.models import ArtifactVersionResponse, ModelVersionResponse, PipelineRunResponse

from posttrain.data.stored import Instructions, Preferences
from posttrain.orchestration.finished_runs import output
from posttrain.orchestration.model_versions.registry import judgement_of
from posttrain.orchestration.model_versions.versions import CHECKPOINT

PAGE = 100
MANY = 10_000
"""The largest page that ZenML gives."""


@dataclass
class TracedRow:
    """A row in the stored data."""

    id: str
    source: str
    kind: str
    """preferences or instructions."""
    split: str
    text: str
    """Last message of its prompt."""
    models: set[str] = field(default_factory=set)
    """Checkpoints and promoted versions that were trained on it; none unless the split is train."""


@dataclass
class Trace:
    """The rows that were found, and how much was searched."""

    rows: list[TracedRow]
    n_datasets: int
    """Number of different preferences and instruction sets that were searched."""
    unknown: list[str]
    """Checkpoints whose training data is not stored any more."""


@dataclass
class _Model:
    """A checkpoint under all its names, identified by its digest."""

    names: list[str] = field(default_factory=list)
    data: set[str] = field(default_factory=set)
    """Digests of what it was trained on itself."""
    parents: set[str] = field(default_factory=set)
    is_known: bool = True


def trace(search: Callable[[Dataset], list[int]]) -> Trace:
    """Search all stored preferences and instructions.

    Args:
        search: function that returns the indices of the wanted rows.
    """
    models, datasets = _models()
    rows: dict[tuple[str, str, str], TracedRow] = {}
    for digest, artifact in datasets.items():
        stored = artifact.load()
        splits = stored.splits() if isinstance(stored, Preferences) else {"train": stored.rows}
        trained = {name for name, model in models.items() if digest in _data_of(name, models)}
        for split, table in splits.items():
            for i in search(table):
                row = table[i]
                key = (row["id"], artifact.name, split)
                found = rows.setdefault(
                    key, TracedRow(row["id"], row["source"], artifact.name, split, row["prompt"][-1]["content"])
                )
                if split == "train":
                    found.models.update(name for model in trained for name in models[model].names)
    unknown = sorted(name for model in models.values() if not model.is_known for name in model.names)
    return Trace(list(rows.values()), len(datasets), unknown)


def _data_of(digest: str, models: dict[str, _Model]) -> set[str]:
    """Return the digests of the data that a model or one of its ancestors was trained on."""
    data: set[str] = set()
    waiting, seen = [digest], set()
    while waiting:
        if (name := waiting.pop()) in models and name not in seen:
            seen.add(name)
            data |= models[name].data
            waiting += models[name].parents
    return data


def _models() -> tuple[dict[str, _Model], dict[str, ArtifactVersionResponse]]:
    """Return all checkpoints by digest, and an artifact for each of the different data by digest."""
    models: defaultdict[str, _Model] = defaultdict(_Model)
    datasets: dict[str, ArtifactVersionResponse] = {}
    runs: dict[UUID | None, PipelineRunResponse | None] = {}
    for artifact in _every(CHECKPOINT):
        run_id, about = artifact.producer_pipeline_run_id, artifact.run_metadata
        if run_id not in runs:
            runs[run_id] = _run(run_id)
        run, model = runs[run_id], models[str(about.get("digest"))]
        model.names.append(f"{artifact.name}:{artifact.version} (run {run.name if run else 'deleted'})")
        model.parents |= {str(about["parent"])} if about.get("parent") else set()
        if about.get("kind") == "base" or (
            run and "import_checkpoint" in run.steps and artifact.name == "sft_checkpoint"
        ):
            continue
        used = _training_data(run, artifact.name) if run else None
        model.is_known = used is not None
        if used:
            digest = str(used.run_metadata["digest"])
            model.data.add(digest)
    for kind in (Preferences, Instructions):
        for artifact in _every(f"contains:{kind.__name__}"):
            datasets.setdefault(str(artifact.run_metadata["digest"]), artifact)
    for name, versions in _promoted():
        models[name].names += versions
    return dict(models), datasets


def _training_data(run: PipelineRunResponse, name: str) -> ArtifactVersionResponse | None:
    """Return what a checkpoint was trained on in its run: an instruction set, if SFT had one, or the preferences."""
    step = "load_instructions" if name == "sft_checkpoint" and "load_instructions" in run.steps else "load_preferences"
    if step not in run.steps:
        return None
    kind = step.removeprefix("load_")
    found: ArtifactVersionResponse | None = output(run.steps[step], kind) if run.steps[step].outputs.get(kind) else None
    return found


def _promoted() -> Iterator[tuple[str, list[str]]]:
    """Yield the digest of each model that was promoted, and the name of its version."""
    client = Client()
    for model in client.list_models(size=MANY).items:
        versions: list[ModelVersionResponse]
        versions = list(client.list_model_versions(model=model.id, sort_by="number", size=MANY, hydrate=True).items)
        for version in versions:
            judgement = judgement_of(version)
            if judgement and judgement.promoted:
                stage = f", {version.stage}" if version.stage else ""
                yield judgement.digest, [f"{model.name}:{version.number} ({version.name}{stage})"]


def _every(data_type: str) -> Iterator[ArtifactVersionResponse]:
    page = 1
    while True:
        found = Client().list_artifact_versions(
            data_type=data_type, sort_by="desc:created", page=page, size=PAGE, hydrate=True
        )
        yield from found.items
        if page >= found.total_pages:
            return
        page += 1


def _run(run_id: UUID | None) -> PipelineRunResponse | None:
    if run_id is None:
        return None
    try:
        return Client().get_pipeline_run(run_id)
    except KeyError:
        return None
