"""The verdict on the held-out pairs."""

from typing import Annotated

from zenml import step

from materializers.evaluation import key_figures
from posttrain import evaluate as library
from posttrain.checkpoint import Base, Checkpoint
from posttrain.config import EvaluationSection, ModelSection
from posttrain.data.preferences import Preferences
from posttrain.evaluate import Evaluation
from posttrain.generate import Generations
from posttrain.reference import Lengths, ReferenceLogps
from steps._tracking import tracked


@step
def evaluate(
    preferences: Preferences,
    base: Base,
    sft_checkpoint: Checkpoint,
    dpo_checkpoint: Checkpoint | None,
    reference_logps: ReferenceLogps | None,
    model: ModelSection,
    lengths: Lengths,
    evaluation: EvaluationSection,
    generations: Generations,
) -> Annotated[Evaluation, "evaluation"]:
    """Base, SFT and, where there is one, DPO on the same test pairs."""
    with tracked(nested=False) as run:
        result = library.evaluate(
            preferences,
            base,
            sft_checkpoint,
            dpo_checkpoint,
            reference_logps,
            model,
            lengths,
            evaluation,
            generations=generations,
        )
        run.log_metrics(key_figures(result.figures))
        run.log_dict(result.figures.model_dump(), "evaluation.json")
    return result
