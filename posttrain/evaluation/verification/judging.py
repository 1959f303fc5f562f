"""A verifier as the judge of models' answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from posttrain.chat.template import Messages
from posttrain.config import EvaluationSection
from posttrain.data.rows import Turn
from posttrain.errors import UserError
from posttrain.evaluation.answers.judge import AnswerScores
from posttrain.evaluation.evaluated_models import EvaluatedModels, section_of_champion
from posttrain.evaluation.verification.answer_scorer import AnswerScorer
from posttrain.models.checkpoint import Checkpoint
from posttrain.training.verifier import check_unseen


def lazy_scores(
    verifier: Checkpoint | None, models: EvaluatedModels, prompts: Sequence[list[Turn]], section: EvaluationSection
) -> AnswerScores:
    """Return the scores of a verifier, which is loaded when it is first asked: after the models have answered.

    Args:
        models: that are judged.
        prompts: that the verifier must not have seen.
        section: its `judge.verifier` is the name of the verifier.

    Raises:
        UserError: the checkpoint is no verifier, or was trained on some of the prompts.
    """
    name = section.judge.verifier
    if verifier is None or verifier.manifest.stage != "verifier":
        raise UserError(
            f"evaluation.judge.verifier: {name} is no verifier: name a model that verifier_pipeline has trained, such as "
            "demo-verifier:production (`zenml model list`)"
        )
    check_unseen(verifier, prompts, str(name))
    own = section_of_champion(verifier, models.base, models.section)

    def scores(prompts: Sequence[Messages], answers: Sequence[str]) -> np.ndarray:
        scorer = AnswerScorer.load(verifier, own, section.tokens_per_batch)
        return scorer.score(prompts, answers, "verifier, answers")

    return scores
