"""Metrics and tags of a run in MLflow: its evaluation, generated answers and verdict."""

from posttrain.data.report import DataReport
from posttrain.data.stored import Preferences
from posttrain.evaluation.answers import generations as generate
from posttrain.evaluation.answers.generations import Generations
from posttrain.evaluation.benchmarks.benchmark_figures import BenchmarkFigures
from posttrain.evaluation.figures import Figures
from posttrain.evaluation.gate.decision import Promotion
from posttrain.evaluation.key_figures import key_figures, legend
from posttrain.evaluation.verification.verifier_figures import VerifierFigures, verifier_key_figures
from posttrain.feedback.collecting.collected_pairs import CollectionReport
from posttrain.tracking import DatasetOrigin, TrackedStage


def log_datasets(run: TrackedStage, preferences: Preferences, report: DataReport) -> None:
    """Log every split as an input of the run, by source: file, commit on the Hub or objects on S3.

    The number of rows is that of the whole split.
    """
    for split, rows in preferences.splits().items():
        for source in report.sources:
            name = f"preferences/{split}" + (f"/{source.path}" if len(report.sources) > 1 else "")
            origin = DatasetOrigin(source.path, source.revision, source.objects, source.digest)
            run.log_dataset(name, preferences.digest, len(rows), origin, context=split)


def log_evaluation(run: TrackedStage, figures: Figures) -> None:
    """Log the key figures as metrics, all figures as a file, and a tag for each finding of the diagnosis."""
    run.log_metrics(key_figures(figures))
    run.log_dict(figures.model_dump(), "evaluation.json")
    run.set_tags({f"finding.{finding.rule}": f"{finding.severity}: {finding.title}" for finding in figures.findings})
    run.set_tags({"mlflow.note.content": f"Metrics of the evaluation:\n\n{legend()}"})
    run.set_tags({"findings": ", ".join(f"{f.severity} {f.rule}" for f in figures.findings) or "none"})


def log_verifier(run: TrackedStage, figures: VerifierFigures) -> None:
    """Log the key figures of a verifier as metrics, and all figures as a file."""
    run.log_metrics(verifier_key_figures(figures))
    run.log_dict(figures.model_dump(), "evaluation.json")


def log_generations(run: TrackedStage, generations: Generations) -> None:
    """Log the key figures of the generated answers."""
    run.log_metrics(generate.key_figures(generations))


def log_benchmarks(run: TrackedStage, benchmarks: BenchmarkFigures) -> None:
    """Log the score of each model on each benchmark, and all figures as a file."""
    run.log_metrics(benchmarks.key_figures())
    run.log_dict(benchmarks.model_dump(), "benchmarks.json")


def log_promotion(run: TrackedStage, promotion: Promotion) -> None:
    """Tag the run with the verdict."""
    run.set_tags({"promoted": str(promotion.promoted).lower(), "reasons": "; ".join(promotion.reasons)})


def log_collection(run: TrackedStage, report: CollectionReport) -> None:
    """Log the counts and mean scores of a collection, and its report as a file."""
    figures = report.model_dump(include={"n_prompts", "n_pairs", "n_failures", "mean_margin", "longer_chosen"})
    run.log_metrics({f"collect/{name}": value for name, value in figures.items() if value is not None})
    for counts in report.models.values():
        if counts.mean_score is not None:
            run.log_metrics({"collect/mean_score": counts.mean_score})
    run.log_dict(report.model_dump(), "collection.json")
