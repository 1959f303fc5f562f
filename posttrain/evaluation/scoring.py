"""Preference accuracy on held-out pairs: base, SFT, DPO and the champion on the same pairs, each figure with its interval."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from posttrain.chat.template import Messages
from posttrain.chat.tokenise import Tokenised, tokenise_pairs
from posttrain.config import EvaluationSection, Lengths, LoraSection, ModelSection
from posttrain.data.pair_sets import PairSets
from posttrain.data.preferences import Preferences
from posttrain.errors import UserError
from posttrain.evaluation.diagnosis.evidence import Written
from posttrain.evaluation.diagnosis.rules import diagnose
from posttrain.evaluation.divergence import NextTokenKL
from posttrain.evaluation.figures import Figures
from posttrain.evaluation.statistics import summarise
from posttrain.forward.logprobs import PairLogps, score_pairs
from posttrain.models.base import resolve_base
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.models.loading import Model, load_chat, load_model
from posttrain.training.reference import ReferenceLogps

TEST = "test"
"""The name of the test pairs among the sets of pairs, beside those in `evaluation.sets`."""


@dataclass(frozen=True)
class Evaluation:
    """The figures, and the rows behind them."""

    figures: Figures
    pairs: pa.Table
    """One row a test pair: id, source, true_margin, prompt, chosen, rejected (text), n_turns (by the user), n_prompt_tokens,
    n_chosen_tokens, n_rejected_tokens, kl_nats_per_token (null where not measured), and for each stage
    `STAGE_chosen_logps` and `STAGE_rejected_logps`, nats summed over completion tokens. A champion of another tokenizer
    has its own `champion_n_chosen_tokens` and `champion_n_rejected_tokens`."""
    sets: dict[str, pa.Table] = field(default_factory=dict)
    """The same for each set in `evaluation.sets`."""

    def save(self, folder: Path) -> None:
        """Writes `evaluation.json`, `pairs.parquet`, and the rows of each further set in the order of the figures."""
        (folder / "evaluation.json").write_text(self.figures.model_dump_json(indent=2), encoding="utf-8")
        pq.write_table(self.pairs, folder / "pairs.parquet")
        for i, name in enumerate(self.figures.sets):
            pq.write_table(self.sets[name], folder / f"set-{i}.parquet")

    @classmethod
    def load(cls, folder: Path) -> Evaluation:
        """What `save` wrote."""
        figures = Figures.model_validate_json((folder / "evaluation.json").read_text(encoding="utf-8"))
        sets = {name: pq.read_table(folder / f"set-{i}.parquet") for i, name in enumerate(figures.sets)}
        return cls(figures, pq.read_table(folder / "pairs.parquet"), sets)


def evaluate(
    preferences: Preferences,
    base: Base,
    sft: Checkpoint | None,
    dpo: Checkpoint | None,
    reference: ReferenceLogps | None,
    model: ModelSection,
    lengths: Lengths,
    section: EvaluationSection,
    *,
    champion: Checkpoint | None = None,
    sets: PairSets | None = None,
    generations: Written | None = None,
) -> Evaluation:
    """Scores the test pairs, and those of further sets, with every model there is.

    Args:
        reference: the stored log-probabilities of the SFT checkpoint, which are then not computed again.
        champion: the model in production. It reads the pairs through its own tokenizer and template.
        generations: what the models answered, for the diagnosis.

    Raises:
        UserError: no pair of a set is left, a model gives no numbers, or the champion's base is gone.
    """
    scoring = _Scoring(base, model, lengths, section, sft or dpo)
    scoring.add_set(TEST, preferences.test)
    for name, found in (sets.sets if sets else {}).items():
        scoring.add_set(name, found.rows)
    kl = NextTokenKL(scoring.sets[TEST].tokenised.rows, section.n_kl_pairs if sft and dpo else 0, section.seed)
    scoring.score("base", None)
    if sft:
        scoring.score("sft", sft, {TEST: reference} if reference else {}, kl if kl.drawn else None)
    if dpo:
        scoring.score("dpo", dpo, kl=kl if kl.drawn else None)
    if champion:
        known = {"sft": sft, "dpo": dpo}
        same = next((stage for stage, other in known.items() if other and other.digest == champion.digest), None)
        scoring.score_champion(champion, same)
    tables = {name: pairs.table() for name, pairs in scoring.sets.items()}
    summaries = {
        name: summarise(table, section, dict(scoring.sets[name].cut), dpo.manifest.beta if dpo else None)
        for name, table in tables.items()
    }
    models = {"base": base, "sft": sft, "dpo": dpo, "champion": champion}
    digests = {"preferences": preferences.digest} | {name: m.digest for name, m in models.items() if m}
    digests |= {f"set {name}": found.digest for name, found in (sets.sets if sets else {}).items()}
    if reference:
        digests["reference"] = reference.checkpoint
    test = summaries.pop(TEST)
    figures = Figures(
        **dict(test),
        sets=summaries,
        confidence=section.confidence,
        seed=section.seed,
        digests=digests,
    )
    findings = diagnose(figures, sft.history if sft else [], dpo.history if dpo else [], generations)
    return Evaluation(figures.model_copy(update={"findings": findings}), tables.pop(TEST), tables)


class _Scoring:
    """Every set of pairs on its way to a table; each model is loaded once for all of them."""

    def __init__(
        self,
        base: Base,
        model: ModelSection,
        lengths: Lengths,
        section: EvaluationSection,
        checkpoint: Checkpoint | None,
    ) -> None:
        self._base, self._model, self._lengths, self._section = base, model, lengths, section
        self._chat = load_chat(base, model, checkpoint)
        self.sets: dict[str, _Pairs] = {}

    def add_set(self, name: str, rows: Dataset) -> None:
        tokenised = tokenise_pairs(self._chat, rows, self._lengths.max_length, self._lengths.max_prompt_length)
        if len(tokenised.rows) == 0:
            raise UserError(
                f"evaluation: no {name} pair is left of {len(rows)} ({tokenised.counts}): raise dpo.max_length"
                + (" or data.test_size" if name == TEST else "")
            )
        self.sets[name] = _Pairs(rows, tokenised)

    def score(
        self,
        stage: str,
        checkpoint: Checkpoint | None,
        stored: dict[str, ReferenceLogps] | None = None,
        kl: NextTokenKL | None = None,
    ) -> None:
        """Scores every set that has no stored scores, and measures KL: SFT is the reference, DPO is measured."""
        stored = stored or {}
        for name, reference in stored.items():
            self.sets[name].scores[stage] = reference.of(self.sets[name].tokenised.rows)
        if stored.keys() == self.sets.keys() and kl is None:
            return
        policy = load_model(self._base, self._model, checkpoint)
        for name, pairs in self.sets.items():
            if name not in stored:
                pairs.scores[stage] = self._score(policy, self._model, pairs.tokenised, f"{stage}, {name} pairs")
        if kl is not None and stage == "sft":
            kl.remember(policy, self._model)
        elif kl is not None:
            self.sets[TEST].kl = dict(zip(kl.drawn, kl.measure(policy, self._model), strict=True))

    def score_champion(self, champion: Checkpoint, same_stage: str | None) -> None:
        """Scores the model in production as it is served: by its own base, tokenizer and template."""
        if same_stage is not None:
            for pairs in self.sets.values():
                pairs.scores["champion"] = pairs.scores[same_stage]
            return
        section = _section_of(champion, self._base, self._model)
        chat = load_chat(champion.manifest.base, section, champion)
        policy = load_model(champion.manifest.base, section, champion)
        for name, pairs in self.sets.items():
            tokenised = tokenise_pairs(chat, pairs.rows, self._lengths.max_length, self._lengths.max_prompt_length)
            if len(tokenised.rows) == 0:
                raise UserError(
                    f"evaluation: no {name} pair is left for the champion ({tokenised.counts}): raise dpo.max_length"
                )
            pairs.own_ids = list(tokenised.rows["id"])
            pairs.scores["champion"] = self._score(policy, section, tokenised, f"champion, {name} pairs")

    def _score(self, policy: Model, section: ModelSection, tokenised: Tokenised, label: str) -> PairLogps:
        scored = score_pairs(policy, tokenised.rows, section, self._section.tokens_per_batch, label)
        if not np.isfinite([scored.chosen_logps, scored.rejected_logps]).all():
            raise UserError(
                f"evaluation: {label.split(',')[0]} gives log-probabilities that are not finite, so nothing can be said of "
                "it: its training diverged; lower the learning rate"
            )
        return scored


class _Pairs:
    """One set of pairs, and what the models made of it."""

    def __init__(self, rows: Dataset, tokenised: Tokenised) -> None:
        self.rows, self.tokenised = rows, tokenised
        self.scores: dict[str, PairLogps] = {}
        self.kl: dict[int, float] = {}
        """By position in the tokenised rows."""
        self.own_ids: list[str] | None = None
        """Ids of the pairs that the champion could read, where it read them by itself."""
        self.cut = Counter(tokenised.counts)

    def table(self) -> pa.Table:
        """The rows that every model has scored."""
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
            "prompt": pa.array([_prompt_text(prompt) for prompt in texts["prompt"]]),
            "chosen": pa.array([_response_text(response) for response in texts["chosen"]]),
            "rejected": pa.array([_response_text(response) for response in texts["rejected"]]),
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


def _section_of(champion: Checkpoint, base: Base, model: ModelSection) -> ModelSection:
    """Settings that load a champion of an earlier run, whatever this run's model is.

    Raises:
        UserError: its adapter belongs to a base that is no longer what it was.
    """
    own = champion.manifest.base
    if own.digest == base.digest and (champion.manifest.kind == "full" or model.method != "full"):
        return model.model_copy(update={"chat_template": None, "lora": LoraSection()})
    adapter = champion.manifest.kind == "adapter"
    method = "lora" if adapter and model.method == "full" else model.method
    section = model.model_copy(
        update={
            "base": own.id,
            "revision": own.revision,
            "method": method,
            "chat_template": None,
            "lora": LoraSection(),
        }
    )
    if adapter and (found := resolve_base(section)).digest != own.digest:
        raise UserError(
            f"the champion {champion.digest[:16]} is an adapter to {own.id} as it was ({own.digest[:16]}), which is now "
            f"{found.digest[:16]}, so it cannot be judged: bring the base back, or take the champion out of production"
        )
    return section


def _prompt_text(prompt: Messages) -> str:
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def _response_text(response: Messages) -> str:
    return "\n\n".join(message["content"] for message in response)
