"""Scores of answers by a judge: a function that scores, or a judge that compares two answers, asked in both orders."""

from __future__ import annotations

import hashlib
import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from posttrain.chat.template import Messages
from posttrain.config import CollectJudgeSection
from posttrain.errors import UserError
from posttrain.evaluation.answers.judge import VERDICTS, Judge, load_function, load_judge
from posttrain.feedback.collecting.paid_work import PaidWork
from posttrain.progress import progress_bar

ScoreFunction = Callable[[Messages, str], float]


@dataclass
class ScoringJudge:
    """Scores the answers to a prompt. Complete scores are stored, failures are counted and asked again in the next run."""

    section: CollectJudgeSection
    work: PaidWork
    failures: Counter[str] = field(default_factory=Counter)
    """Number of failures by reason."""

    def __post_init__(self) -> None:
        named = self.section.score_function
        self._score: ScoreFunction | None = load_function(named, "collect.judge.score_function") if named else None
        self._compare: Judge | None = None if named else load_judge(self.section)
        about = self.section.model_dump(
            include={"score_function", "function", "base_url", "model", "criteria", "temperature"}
        )
        self._identity = [about, _code_digest(named or self.section.function)]

    def score_all(self, questions: Sequence[tuple[Messages, list[str]]]) -> list[list[float] | None]:
        """Return the score of each answer to each prompt; None for a prompt with an answer that could not be judged."""
        with (
            ThreadPoolExecutor(self.section.concurrency if self.section.base_url else 1) as pool,
            progress_bar(len(questions), "Judging", " prompts") as bar,
        ):

            def one(question: tuple[Messages, list[str]]) -> list[float] | None:
                found = self._scores(*question)
                bar.update()
                return found

            return list(pool.map(one, questions))

    def _scores(self, prompt: Messages, texts: list[str]) -> list[float] | None:
        key = ("scores", self._identity, prompt, texts)
        if (stored := self.work.get(*key)) is not None:
            return [float(score) for score in stored]
        found = [self._scored(prompt, text) for text in texts] if self._score else self._compared(prompt, texts)
        if any(math.isnan(score) for score in found):
            return None
        self.work.put(found, *key)
        return found

    def _scored(self, prompt: Messages, text: str) -> float:
        assert self._score is not None
        score = self._try(lambda: float(self._score(prompt, text)))  # type: ignore[misc]
        if score is not None and not math.isfinite(score):
            self.failures[f"returned {score} instead of a finite number"] += 1
            return math.nan
        return math.nan if score is None else score

    def _compared(self, prompt: Messages, texts: list[str]) -> list[float]:
        """Return the share of comparisons that each answer wins; a tie counts half. Each pair is compared in both orders."""
        points = dict.fromkeys(texts, 0.0)
        for one, other in combinations(points, 2):
            for first, second in ((one, other), (other, one)):
                verdict = self._try(lambda f=first, s=second: self._compare(prompt, f, s))  # type: ignore[misc]
                if verdict not in VERDICTS.values():
                    if verdict is not None:
                        self.failures[f"returned {verdict!r} instead of first, second or tie"] += 1
                    return [math.nan] * len(texts)
                points[first] += {"first": 1.0, "second": 0.0, "tie": 0.5}[verdict]
                points[second] += {"first": 0.0, "second": 1.0, "tie": 0.5}[verdict]
        n_comparisons = max(2 * (len(points) - 1), 1)
        return [points[text] / n_comparisons for text in texts]

    def _try(self, ask: Callable[[], Any]) -> Any:
        """Return the judge's answer; None for a failure, which is counted."""
        try:
            return ask()
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 (user code: any exception means one missing score, not the end of the run)
            lines = str(error).strip().splitlines()
            self.failures[f"{type(error).__name__}: {lines[0][:120] if lines else 'no reason given'}"] += 1
            return None


def _code_digest(function: str | None) -> str | None:
    """Return the sha256 of the module of a function: scores of an edited function are not used again."""
    path = function and getattr(sys.modules.get(function.partition(":")[0]), "__file__", None)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else None
