"""Evaluates a verifier, and the one in production, on the held-out pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from posttrain.chat.tokenise import Tokenised, tokenise_pairs
from posttrain.chat.tokens import PairTokens
from posttrain.config import EvaluationSection, ModelSection
from posttrain.data.stored import Preferences
from posttrain.errors import UserError
from posttrain.evaluation.clusters import conversation_key, prompts_digest, prompts_sketch
from posttrain.evaluation.evaluated_models import section_of_champion
from posttrain.evaluation.scoring import prompt_text, response_text
from posttrain.evaluation.verification.answer_scorer import AnswerScorer
from posttrain.evaluation.verification.best_of_n import AnsweredQuestion
from posttrain.evaluation.verification.graded_samples import SampledAnswers
from posttrain.evaluation.verification.verdict_statistics import GradedAnswers, ScoredSets, summarise_verifier
from posttrain.evaluation.verification.verifier_figures import VerifierFigures
from posttrain.models.checkpoint import Base, Checkpoint


@dataclass(frozen=True)
class VerifierEvaluation:
    """The figures, and the rows that they were computed from."""

    figures: VerifierFigures
    pairs: pa.Table
    """One row per test pair: id, source, true_margin, conversation (its key), prompt, chosen, rejected (text), n_turns,
    n_prompt_tokens, n_chosen_tokens, n_rejected_tokens, and `NAME_chosen_score` and `NAME_rejected_score` of
    `verifier` and `champion`."""

    def save(self, folder: Path) -> None:
        """Write `evaluation.json` and `pairs.parquet`."""
        (folder / "evaluation.json").write_text(self.figures.model_dump_json(indent=2), encoding="utf-8")
        pq.write_table(self.pairs, folder / "pairs.parquet")

    @classmethod
    def load(cls, folder: Path) -> VerifierEvaluation:
        """Return what `save` wrote."""
        figures = VerifierFigures.model_validate_json((folder / "evaluation.json").read_text(encoding="utf-8"))
        return cls(figures, pq.read_table(folder / "pairs.parquet"))


@dataclass(frozen=True)
class EvaluatedVerifiers:
    """The verifier of this run, and the one in production."""

    base: Base
    section: ModelSection
    """How they are loaded."""
    verifier: Checkpoint
    champion: Checkpoint | None = None


def evaluate_verifier(
    models: EvaluatedVerifiers,
    preferences: Preferences,
    tokens: PairTokens,
    sampled: SampledAnswers,
    section: EvaluationSection,
) -> VerifierEvaluation:
    """Score the test pairs and the sampled answers with the verifier, and the pairs with the champion.

    Raises:
        UserError: no test pair is left, or the champion is no verifier.
    """
    test = Tokenised(tokens.rows("test"), tokens.cut["test"])
    if not len(test.rows):
        raise UserError(
            f"evaluation: no test pair can be used ({test.counts}): raise verifier.max_length or data.test_size"
        )
    scorer = AnswerScorer.load(models.verifier, models.section, section.tokens_per_batch)
    scores = {"verifier": _scores_of(scorer, test.rows, "verifier, test pairs")}
    questions = _scored(scorer, sampled)
    validation = tokens.rows("validation")
    graded = None
    if len(validation):
        found = _table(preferences.validation, validation, {"verifier": _scores_of(scorer, validation, "validation")})
        graded = GradedAnswers.of(_columns(found))
    del scorer  # frees its memory before the champion is loaded
    cut = dict(test.counts)
    if models.champion:
        scores["champion"] = _of_champion(models, preferences.test, tokens, section)
        if cut_for_champion := len(test.rows) - len(scores["champion"]):
            cut["unreadable_for_champion"] = cut_for_champion
    table = _table(preferences.test, test.rows, scores)
    digests = {
        "preferences": preferences.digest,
        "test_prompts": prompts_digest(preferences.test["prompt"]),
        "test_prompts_sketch": prompts_sketch(preferences.test["prompt"]),
        "verifier": models.verifier.digest,
        "answers": sampled.answers_digest,
    } | ({"champion": models.champion.digest} if models.champion else {})
    figures = summarise_verifier(ScoredSets(table, graded, questions, cut), section, digests)
    return VerifierEvaluation(figures, table)


def _of_champion(
    models: EvaluatedVerifiers, rows: Dataset, tokens: PairTokens, section: EvaluationSection
) -> dict[str, tuple[float, float]]:
    champion = models.champion
    assert champion is not None
    if champion.manifest.stage != "verifier":
        raise UserError(
            f"name: the model in production under this name is a {champion.manifest.stage.upper()} model, which a verifier cannot "
            "be compared with: give the verifier a name of its own, such as name: demo-verifier"
        )
    own = section_of_champion(champion, models.base, models.section)
    scorer = AnswerScorer.load(champion, own, section.tokens_per_batch)
    longest, of_prompt = champion.manifest.max_length, champion.manifest.max_prompt_length
    found = tokens.rows("test")
    if scorer.chat.digest != tokens.chat or (longest, of_prompt) != (
        tokens.lengths.max_length,
        tokens.lengths.max_prompt_length,
    ):
        assert longest is not None
        assert of_prompt is not None
        found = tokenise_pairs(scorer.chat, rows, longest, of_prompt).rows
    return _scores_of(scorer, found, "champion, test pairs")


def _scores_of(scorer: AnswerScorer, rows: Dataset, label: str) -> dict[str, tuple[float, float]]:
    """Return the scores of chosen and rejected by the id of the pair."""
    prompts, n = [*rows["prompt_ids"]], len(rows)
    scores = scorer.score_tokens(prompts * 2, [*rows["chosen_ids"], *rows["rejected_ids"]], label).tolist()
    return dict(zip(rows["id"], zip(scores[:n], scores[n:], strict=True), strict=True))


def _scored(scorer: AnswerScorer, sampled: SampledAnswers) -> list[AnsweredQuestion]:
    prompts = [question.prompt for question in sampled.questions for _ in question.answers]
    answers = [answer for question in sampled.questions for answer in question.answers]
    scores = scorer.score(prompts, answers, "verifier, sampled answers")
    found, start = [], 0
    for question in sampled.questions:
        own = scores[start : start + len(question.answers)]
        start += len(question.answers)
        known = np.isfinite(own)
        if known.any():
            found.append(AnsweredQuestion(own[known], np.array(question.true_rewards)[known]))
    return found


def _table(texts: Dataset, tokens: Dataset, scores: Mapping[str, dict[str, tuple[float, float]]]) -> pa.Table:
    """Return the rows that every verifier has scored."""
    places = {row_id: i for i, row_id in enumerate(texts["id"])}
    ids = list(tokens["id"])
    kept = [i for i, row_id in enumerate(ids) if all(row_id in of_model for of_model in scores.values())]
    rows = texts.select([places[ids[i]] for i in kept])
    columns = {
        "id": pa.array([ids[i] for i in kept]),
        "source": pa.array(list(rows["source"]), pa.string()),
        "true_margin": pa.array(list(rows["true_margin"]), pa.float64()),
        "conversation": pa.array([conversation_key(prompt) for prompt in rows["prompt"]]),
        "prompt": pa.array([prompt_text(prompt) for prompt in rows["prompt"]]),
        "chosen": pa.array([response_text(response) for response in rows["chosen"]]),
        "rejected": pa.array([response_text(response) for response in rows["rejected"]]),
        "n_turns": pa.array([sum(m["role"] == "user" for m in prompt) for prompt in rows["prompt"]], pa.int32()),
    }
    for name in ("prompt", "chosen", "rejected"):
        lengths = [len(found) for found in tokens[f"{name}_ids"]]
        columns[f"n_{name}_tokens"] = pa.array([lengths[i] for i in kept], pa.int32())
    for model, of_model in scores.items():
        for side, name in enumerate(("chosen", "rejected")):
            columns[f"{model}_{name}_score"] = pa.array([of_model[ids[i]][side] for i in kept], pa.float32())
    return pa.table(columns)


def _columns(table: pa.Table) -> dict[str, np.ndarray]:
    return {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
