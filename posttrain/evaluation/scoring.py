"""Preference accuracy on held-out pairs: base, SFT, DPO and the champion on the same pairs, each with an interval."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from posttrain.chat.template import Chat, Messages
from posttrain.chat.tokenise import Tokenised, tokenise_pairs
from posttrain.chat.tokens import PairTokens, SftTokens, check_chat
from posttrain.config import EvaluationSection
from posttrain.data.pair_sets import PairSets
from posttrain.data.stored import Preferences
from posttrain.errors import UserError
from posttrain.evaluation.clusters import conversation_key, prompts_digest, prompts_sketch
from posttrain.evaluation.diagnosis.evidence import TrainingLog, Written
from posttrain.evaluation.diagnosis.rules import diagnose
from posttrain.evaluation.divergence import NextTokenKL
from posttrain.evaluation.evaluated_models import EvaluatedModels, section_of_champion
from posttrain.evaluation.figures import Figures
from posttrain.evaluation.forgetting import HeldOut, held_out_rows, measure_forgetting, of_chosen
from posttrain.evaluation.label_check.noise import noise_of_test_pairs
from posttrain.evaluation.statistics import CONVERSATION, summarise
from posttrain.forward.logprobs import PairLogps
from posttrain.forward.ranks import LoadedBy, Ranks, on_ranks
from posttrain.models.checkpoint import Checkpoint
from posttrain.models.loading import load_chat
from posttrain.training.reference import ReferenceLogps

TEST = "test"
"""Name of the test pairs among the sets of pairs. The others are those in `evaluation.sets`."""


@dataclass(frozen=True)
class Evaluation:
    """The figures, and the rows that they were computed from."""

    figures: Figures
    pairs: pa.Table
    """One row per test pair: id, source, true_margin, conversation (its key, as `conversation_key` gives it), prompt, chosen,
    rejected (text), n_turns (by the user), n_prompt_tokens, n_chosen_tokens, n_rejected_tokens, kl_nats_per_token
    (null where not measured), and for each stage `STAGE_chosen_logps` and `STAGE_rejected_logps`, nats summed over completion
    tokens. A champion of another tokenizer has its own `champion_n_chosen_tokens` and `champion_n_rejected_tokens`."""
    sets: dict[str, pa.Table] = field(default_factory=dict)
    """The same for each set in `evaluation.sets`."""

    def save(self, folder: Path) -> None:
        """Write `evaluation.json`, `pairs.parquet`, and the rows of each further set in the order of the figures."""
        (folder / "evaluation.json").write_text(self.figures.model_dump_json(indent=2), encoding="utf-8")
        pq.write_table(self.pairs, folder / "pairs.parquet")
        for i, name in enumerate(self.figures.sets):
            pq.write_table(self.sets[name], folder / f"set-{i}.parquet")

    @classmethod
    def load(cls, folder: Path) -> Evaluation:
        """Return what `save` wrote."""
        figures = Figures.model_validate_json((folder / "evaluation.json").read_text(encoding="utf-8"))
        sets = {name: pq.read_table(folder / f"set-{i}.parquet") for i, name in enumerate(figures.sets)}
        return cls(figures, pq.read_table(folder / "pairs.parquet"), sets)


@dataclass(frozen=True)
class EvaluationData:
    """The pairs that the models are evaluated on, and results that earlier steps computed."""

    preferences: Preferences
    tokens: PairTokens
    """Of the preferences."""
    reference: ReferenceLogps | None = None
    """Log-probabilities of the SFT checkpoint, which are then not computed again."""
    sets: PairSets | None = None
    """Further sets of pairs (`evaluation.sets`)."""
    generations: Written | None = None
    """Answers of the models, for the diagnosis."""
    sft_tokens: SftTokens | None = None
    """Rows of SFT, some of which are held out; None if SFT was not trained in this run."""


def evaluate(models: EvaluatedModels, data: EvaluationData, section: EvaluationSection) -> Evaluation:
    """Score the test pairs, and those of further sets, with every model.

    A champion reads the pairs through its own tokenizer and template.

    Raises:
        UserError: no pair of a set can be used, the reference belongs to other tokens or another checkpoint, a model's
            log-probabilities are NaN or infinite, or the champion's base has changed.
    """
    scoring = _Scoring(models, data, section)
    sft, dpo = models.sft, models.dpo
    is_base = sft is not None and sft.manifest.kind == "base"  # DPO starts from the base
    test_tokens = scoring.sets[TEST].tokenised.rows
    kl = NextTokenKL(test_tokens, section.n_kl_pairs if sft and dpo else 0, section.seed)
    measured = kl if kl.drawn else None
    if not is_base:
        scoring.score("base", None)
    if sft:
        stored = {}
        if data.reference:
            data.reference.check_checkpoint(sft)
            stored[TEST] = data.reference.of(test_tokens, data.tokens.lengths)
        scoring.score("sft", sft, stored, measured)
        if is_base:
            scoring.copy("sft", "base")
    if dpo:
        scoring.score("dpo", dpo, kl=measured)
    if models.champion:
        same = [stage for stage, other in models.trained.items() if other.digest == models.champion.digest]
        scoring.score_champion(models.champion, same[0] if same else None)
    tables = {name: pairs.table() for name, pairs in scoring.sets.items()}
    beta = dpo.manifest.beta if dpo else None
    summaries = {name: summarise(table, section, dict(scoring.sets[name].cut), beta) for name, table in tables.items()}
    figures = Figures(
        **dict(summaries.pop(TEST)),
        sets=summaries,
        label_noise=noise_of_test_pairs(tables[TEST], section.confidence),
        forgetting=measure_forgetting(scoring.held_out or of_chosen(tables[TEST]), section),
        confidence=section.confidence,
        seed=section.seed,
        digests=_digests(models, data),
    )
    findings = diagnose(figures, _log_of(sft), _log_of(dpo), data.generations)
    return Evaluation(figures.model_copy(update={"findings": findings}), tables.pop(TEST), tables)


def _log_of(checkpoint: Checkpoint | None) -> TrainingLog:
    return TrainingLog(checkpoint.history, checkpoint.manifest.metrics) if checkpoint else TrainingLog()


def _digests(models: EvaluatedModels, data: EvaluationData) -> dict[str, str]:
    digests = {
        "preferences": data.preferences.digest,
        "test_prompts": prompts_digest(data.preferences.test["prompt"]),
        "test_prompts_sketch": prompts_sketch(data.preferences.test["prompt"]),
        **models.digests,
    }
    digests |= {f"set {name}": found.digest for name, found in (data.sets.sets if data.sets else {}).items()}
    return digests | ({"reference": data.reference.checkpoint} if data.reference else {})


class _Scoring:
    """Every set of pairs with the scores of each model. A model is loaded once for all sets."""

    def __init__(self, models: EvaluatedModels, data: EvaluationData, section: EvaluationSection) -> None:
        self._models, self._section, self._lengths = models, section, data.tokens.lengths
        chat = load_chat(models.base, models.section, models.sft or models.dpo)
        check_chat(data.tokens, chat, "the trained models")
        self._chat_digest = chat.digest
        test = Tokenised(data.tokens.rows(TEST), data.tokens.cut[TEST])
        self.sets = {TEST: _Pairs(TEST, data.preferences.test, test)}
        for name, found in (data.sets.sets if data.sets else {}).items():
            self.sets[name] = _Pairs(name, found.rows, self._tokenise(chat, found.rows))

        held_out = held_out_rows(data.sft_tokens)
        self._held_out = None if held_out is None else Tokenised(held_out, {})
        self.held_out = None if held_out is None else HeldOut("instructions", {}, np.array([]))
        """Scores of the held-out instructions; None if there are none."""

    def _tokenise(self, chat: Chat, rows: Dataset) -> Tokenised:
        return tokenise_pairs(chat, rows, self._lengths.max_length, self._lengths.max_prompt_length)

    def score(
        self,
        stage: str,
        checkpoint: Checkpoint | None,
        stored: dict[str, PairLogps] | None = None,
        kl: NextTokenKL | None = None,
    ) -> None:
        """Score every set that has no stored scores, and measure KL: SFT is the reference, DPO is measured."""
        stored = stored or {}
        for name, scores in stored.items():
            self.sets[name].scores[stage] = scores
        if stored.keys() == self.sets.keys() and kl is None and self._held_out is None:
            return
        section = self._models.section
        with on_ranks(LoadedBy(self._models.base, section, checkpoint, self._section.processes)) as ranks:
            self._score_held_out(stage, ranks)
            for name, pairs in self.sets.items():
                if name not in stored:
                    pairs.scores[stage] = self._score(ranks, pairs.tokenised, f"{stage}, {name} pairs")
            if kl is not None and stage == "sft":
                kl.remember(ranks.model, section)
            elif kl is not None:
                self.sets[TEST].kl = dict(zip(kl.drawn, kl.measure(ranks.model, section), strict=True))

    def copy(self, stage: str, to: str) -> None:
        """Take the scores of a stage for another one that is the same model."""
        for pairs in self.sets.values():
            pairs.scores[to] = pairs.scores[stage]
        if self.held_out:
            self.held_out.logps[to] = self.held_out.logps[stage]

    def score_champion(self, champion: Checkpoint, same_stage: str | None) -> None:
        """Score the model in production as it is served: with its own base, tokenizer and template.

        Args:
            same_stage: the stage of this run that is the same model and has been scored.
        """
        if same_stage is not None:
            self.copy(same_stage, "champion")
            return
        section = section_of_champion(champion, self._models.base, self._models.section)
        chat = load_chat(champion.manifest.base, section, champion)
        with on_ranks(LoadedBy(champion.manifest.base, section, champion, self._section.processes)) as ranks:
            self._score_as_champion(ranks, chat)

    def _score_as_champion(self, ranks: Ranks, chat: Chat) -> None:
        if chat.digest == self._chat_digest:
            self._score_held_out("champion", ranks)
        for name, pairs in self.sets.items():
            tokenised = pairs.tokenised if chat.digest == self._chat_digest else self._tokenise(chat, pairs.rows)
            if len(tokenised.rows) == 0:
                raise UserError(
                    f"evaluation: no {name} pair is left for the champion ({tokenised.counts}): raise dpo.max_length"
                )
            pairs.own_ids = list(tokenised.rows["id"])
            pairs.scores["champion"] = self._score(ranks, tokenised, f"champion, {name} pairs")

    def _score_held_out(self, stage: str, ranks: Ranks) -> None:
        if self._held_out is None or self.held_out is None:
            return
        found = self._score(ranks, self._held_out, f"{stage}, held-out instructions")
        logps = self.held_out.logps | {stage: found.chosen_logps.astype(np.float64)}
        self.held_out = HeldOut("instructions", logps, found.n_chosen_tokens.astype(np.float64))

    def _score(self, ranks: Ranks, tokenised: Tokenised, label: str) -> PairLogps:
        scored = ranks.score(tokenised.rows, self._section.tokens_per_batch, label)
        if not np.isfinite([scored.chosen_logps, scored.rejected_logps]).all():
            raise UserError(
                f"evaluation: {label.split(',')[0]} gives log-probabilities that are not finite, so it cannot be evaluated. Its "
                "training diverged: lower the learning rate"
            )
        return scored


class _Pairs:
    """One set of pairs, and its scores by every model."""

    def __init__(self, name: str, rows: Dataset, tokenised: Tokenised) -> None:
        if len(tokenised.rows) == 0:
            raise UserError(
                f"evaluation: none of the {len(rows)} {name} pairs can be used ({tokenised.counts}): raise dpo.max_length"
                + (" or data.test_size" if name == TEST else "")
            )
        self.rows, self.tokenised = rows, tokenised
        self.scores: dict[str, PairLogps] = {}
        self.kl: dict[int, float] = {}
        """By position in the tokenised rows."""
        self.own_ids: list[str] | None = None
        """Ids of the pairs that fit with the champion's tokenizer; None if they were not tokenised with it."""
        self.cut = Counter(tokenised.counts)

    def table(self) -> pa.Table:
        """Return the rows that every model has scored."""
        ids = list(self.tokenised.rows["id"])
        of_text = {row_id: i for i, row_id in enumerate(self.rows["id"])}
        of_champion = {row_id: i for i, row_id in enumerate(ids if self.own_ids is None else self.own_ids)}
        kept = [i for i, row_id in enumerate(ids) if row_id in of_champion]
        if len(kept) < len(ids):
            self.cut["unreadable_for_champion"] = len(ids) - len(kept)
        texts = self.rows.select([of_text[ids[i]] for i in kept])
        prompt_ids = self.tokenised.rows["prompt_ids"]
        first = next(iter(self.scores.values()))
        columns = {
            "id": pa.array([ids[i] for i in kept]),
            "source": pa.array(list(texts["source"]), pa.string()),
            "true_margin": pa.array(list(texts["true_margin"]), pa.float64()),
            CONVERSATION: pa.array([conversation_key(prompt) for prompt in texts["prompt"]]),
            "prompt": pa.array([prompt_text(prompt) for prompt in texts["prompt"]]),
            "chosen": pa.array([response_text(response) for response in texts["chosen"]]),
            "rejected": pa.array([response_text(response) for response in texts["rejected"]]),
            "n_turns": pa.array([sum(m["role"] == "user" for m in prompt) for prompt in texts["prompt"]], pa.int32()),
            "n_prompt_tokens": pa.array([len(prompt_ids[i]) for i in kept], pa.int32()),
            "n_chosen_tokens": pa.array(first.n_chosen_tokens[kept]),
            "n_rejected_tokens": pa.array(first.n_rejected_tokens[kept]),
        }
        if self.kl:
            columns["kl_nats_per_token"] = pa.array([self.kl.get(i) for i in kept], pa.float64())
        for stage, score in self.scores.items():
            taken = [of_champion[ids[i]] for i in kept] if stage == "champion" else kept
            columns[f"{stage}_chosen_logps"] = pa.array(score.chosen_logps[taken])
            columns[f"{stage}_rejected_logps"] = pa.array(score.rejected_logps[taken])
            if stage == "champion" and self.own_ids is not None:
                columns["champion_n_chosen_tokens"] = pa.array(score.n_chosen_tokens[taken])
                columns["champion_n_rejected_tokens"] = pa.array(score.n_rejected_tokens[taken])
        return pa.table(columns)


def prompt_text(prompt: Messages) -> str:
    """Return a prompt as text for people."""
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def response_text(response: Messages) -> str:
    """Return a response as text for people."""
    return "\n\n".join(message["content"] for message in response)
