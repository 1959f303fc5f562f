"""Scores of a trained verifier for any prompts and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset

from posttrain.chat.findings import Findings
from posttrain.chat.template import Chat, Messages
from posttrain.chat.tokenise import encode_rows
from posttrain.config import ModelSection
from posttrain.errors import UserError
from posttrain.forward.flat import announce
from posttrain.forward.flat_row import to_device
from posttrain.forward.logprobs import batches_by_length, batches_by_prompt
from posttrain.forward.scalar_head import lay_out_scored, pad_scored, use_flat_scores
from posttrain.models.checkpoint import Checkpoint
from posttrain.models.loading import Model, load_chat
from posttrain.models.precision import autocast
from posttrain.models.verifier_model import load_verifier
from posttrain.progress import progress_bar

AS_THEY_ARE = {"already_templated": "keep", "template_refuses": "fold"}
"""Policies for the text of models: what can be scored is scored."""


@dataclass(frozen=True)
class AnswerScorer:
    """A loaded verifier.

    scorer = AnswerScorer.load(checkpoint, model)
    scores = scorer.score(prompts, answers)
    """

    model: Model
    chat: Chat
    section: ModelSection
    checkpoint: Checkpoint
    tokens_per_batch: int = 8192

    @classmethod
    def load(cls, checkpoint: Checkpoint, section: ModelSection, tokens_per_batch: int = 8192) -> AnswerScorer:
        """Load a verifier.

        Args:
            section: settings that load its base, as `find_version` gives them.
            tokens_per_batch: largest number of tokens in a batch.

        Raises:
            UserError: the checkpoint is no verifier.
        """
        base = checkpoint.manifest.base
        model = load_verifier(base, section, checkpoint)
        return cls(model, load_chat(base, section, checkpoint), section, checkpoint, tokens_per_batch)

    def score(self, prompts: Sequence[Messages], answers: Sequence[str], label: str = "Scoring") -> np.ndarray:
        """Return the score of each answer to its prompt, float32; higher is better. Equal prompts are computed once.

        Scores of different prompts can be compared only as far as the verifier was trained to: the difference of two answers
        to one prompt is the log-odds that the first is the better one.

        Returns:
            NaN where the chat template cannot show the prompt or the answer.
        """
        rows = Dataset.from_list(
            [
                {"id": str(i), "prompt": list(prompt), "completion": [{"role": "assistant", "content": answer}]}
                for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
            ]
        )
        scores = np.full(len(rows), np.nan, dtype=np.float32)
        if not len(rows):
            return scores
        encoded = encode_rows(self.chat, rows, ("completion",), Findings(AS_THEY_ARE))
        prompt_ids, answer_ids = self._cut([(row.prompt_ids, row.answers_ids[0]) for row in encoded])
        scores[[int(row.id) for row in encoded]] = self.score_tokens(prompt_ids, answer_ids, label)
        return scores

    def _cut(self, rows: list[tuple[list[int], list[int]]]) -> tuple[list[list[int]], list[list[int]]]:
        """Cut prompts and answers as in training."""
        longest, of_prompt = self.checkpoint.manifest.max_length, self.checkpoint.manifest.max_prompt_length
        assert longest is not None
        assert of_prompt is not None
        prompts = [prompt[-of_prompt:] for prompt, _ in rows]
        return prompts, [answer[: longest - len(prompt)] for prompt, (_, answer) in zip(prompts, rows, strict=True)]

    @torch.no_grad()
    def score_tokens(self, prompts: list[list[int]], answers: list[list[int]], label: str) -> np.ndarray:
        """Return the score of each answer, float32. Answers are token ids that end with the stop token.

        Raises:
            UserError: a score is NaN or infinite.
        """
        scores = np.zeros(len(prompts), dtype=np.float32)
        pad_id = self.checkpoint.manifest.pad_id
        assert pad_id is not None
        padded = use_flat_scores(self.model, self.section, pad_id)
        announce(padded)
        batches = batches_by_length if padded else batches_by_prompt
        where = next(self.model.parameters()).device
        with autocast(self.section), progress_bar(len(prompts), label, " answers") as progress:
            for batch in batches(prompts, answers, self.tokens_per_batch):
                lay_out = pad_scored if padded else lay_out_scored
                inputs = to_device(lay_out([prompts[i] for i in batch], [answers[i] for i in batch], pad_id), where)
                output = self.model(**inputs, use_cache=False) if padded else self.model(flat=inputs)
                scores[batch] = output.logits[:, 0].float().cpu().numpy()
                progress.update(len(batch))
        if not np.isfinite(scores).all():
            raise UserError(
                f"the verifier {self.checkpoint.digest[:16]} gives scores that are NaN or infinite: its training diverged, so "
                "train it again with a lower verifier.learning_rate"
            )
        return scores
