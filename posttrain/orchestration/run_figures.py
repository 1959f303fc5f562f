"""What MLflow's row of a run shows: its evaluation, answers and verdict."""

from posttrain.evaluation import generations as generate
from posttrain.evaluation.figures import Figures
from posttrain.evaluation.gate import Promotion
from posttrain.evaluation.generations import Generations
from posttrain.evaluation.key_figures import key_figures, legend
from posttrain.tracking import TrackedStage


def log_evaluation(run: TrackedStage, figures: Figures) -> None:
    """The key figures as metrics, all of them as a file, and the findings: each has a tag of its own that says what is so."""
    run.log_metrics(key_figures(figures))
    run.log_dict(figures.model_dump(), "evaluation.json")
    run.set_tags({f"finding.{finding.rule}": f"{finding.severity}: {finding.title}" for finding in figures.findings})
    run.set_tags({"mlflow.note.content": f"Metrics of the evaluation:\n\n{legend()}"})
    run.set_tags({"findings": ", ".join(f"{f.severity} {f.rule}" for f in figures.findings) or "none"})


def log_generations(run: TrackedStage, generations: Generations) -> None:
    """The key figures of the answers."""
    run.log_metrics(generate.key_figures(generations))


def log_promotion(run: TrackedStage, promotion: Promotion) -> None:
    """The verdict."""
    run.set_tags({"promoted": str(promotion.promoted).lower(), "reasons": "; ".join(promotion.reasons)})
