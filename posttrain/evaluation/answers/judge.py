"""Pairwise comparison of answers by a judge: a function, or a model at an OpenAI-compatible endpoint.

Each pair is judged twice, in both orders, because judges have a position bias. An answer wins only if it wins in both orders.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from posttrain.chat.template import Messages
from posttrain.config import JudgeSection
from posttrain.errors import UserError
from posttrain.evaluation.answers.chat_endpoint import ChatEndpoint, NoVerdict
from posttrain.evaluation.clustered.gains import paired_gain
from posttrain.evaluation.clusters import Clusters, conversation_key
from posttrain.evaluation.intervals import Estimate, Result
from posttrain.storage.cache import cache_dir

Verdict = Literal["first", "second", "tie"]
VERDICTS: dict[str, Verdict] = {"A": "first", "B": "second", "C": "tie"}

# Source: Zheng et al. 2023 (MT-Bench), figure 5; the criteria come from the config.
SYSTEM = (
    "Please act as an impartial judge and evaluate the quality of the responses provided by two AI assistants to the conversation "
    "displayed below. Choose the assistant that answers better. Your evaluation should consider {criteria}. Begin your evaluation "
    "by comparing the two responses and provide a short explanation. Avoid any position biases and ensure that the order in which "
    "the responses were presented does not influence your decision. Do not allow the length of the responses to influence your "
    "evaluation. Be as objective as possible. After providing your explanation, output your final verdict by strictly following "
    'this format: "[[A]]" if assistant A is better, "[[B]]" if assistant B is better, and "[[C]]" for a tie.'
)
QUESTION = """[Conversation]
{prompt}

[The Start of Assistant A's Answer]
{first}
[The End of Assistant A's Answer]

[The Start of Assistant B's Answer]
{second}
[The End of Assistant B's Answer]"""


class Judge(Protocol):
    """Decides which of two answers is better. An exception it raises is counted as a failure."""

    def __call__(self, prompt: Messages, first: str, second: str) -> Verdict:
        """`first`, `second` or `tie`."""


@dataclass(frozen=True)
class Contest:
    """Two answers to one prompt."""

    id: str
    prompt: Messages
    older: str
    """Answer of the older model, e.g. SFT."""
    newer: str
    """Answer of the newer model."""


class WinRate(Result):
    """Share of prompts for which the newer model's answer wins against the older model's; ties count half."""

    share: Estimate
    """(wins + ties / 2) / all comparisons. Its interval is that of the difference of wins and losses."""
    n_prompts: int
    """Number of prompts, or of conversations where several prompts continue one: the unit of the interval and the test."""
    n_wins: int
    n_ties: int
    n_losses: int
    p_value: float
    """Two-sided p-value of a win rate of one half, as in `Gain`; without ties, the exact sign test's."""


class Judgement(Result):
    """The verdicts of a judge on pairs of answers."""

    judge: str
    """`module:function`, or the model and its URL."""
    win_rate: WinRate | None
    """None if no prompt could be judged."""
    n_disagreed: int
    """Number of prompts whose winner depended on the order of the answers; they count as ties."""
    n_failed: int
    """Number of prompts without two verdicts; they are excluded from the win rate."""
    failures: dict[str, int]
    """Number of failures by reason."""
    verdicts: dict[str, str]
    """Verdict by id of the prompt: `newer`, `older`, `tie` or `failed`."""


def judge_contests(contests: Sequence[Contest], section: JudgeSection, confidence: float) -> Judgement | None:
    """Return the judge's verdicts on pairs of answers; None if the config names no judge or there are no answers.

    Identical answers are a tie without asking the judge.

    Raises:
        UserError: the judge cannot be loaded, or its API key is missing.
    """
    judge = load_judge(section)
    if judge is None or not contests:
        return None
    failures: Counter[str] = Counter()

    def ask(contest: Contest) -> tuple[str, str]:
        if contest.older == contest.newer:
            return "tie", "tie"
        one = _ask(judge, contest.prompt, contest.older, contest.newer, failures)
        other = _ask(judge, contest.prompt, contest.newer, contest.older, failures)
        return (
            {"first": "older", "second": "newer"}.get(one, one),
            {"first": "newer", "second": "older"}.get(other, other),
        )

    with ThreadPoolExecutor(section.concurrency) as pool:
        answers = list(pool.map(ask, contests))
    verdicts = {
        contest.id: "failed" if "failed" in pair else pair[0] if pair[0] == pair[1] else "tie"
        for contest, pair in zip(contests, answers, strict=True)
    }
    name = section.function or f"{section.model} at {section.base_url}"
    return _judgement(contests, name, verdicts, confidence).model_copy(
        update={
            "n_disagreed": sum(set(pair) == {"older", "newer"} for pair in answers),
            "failures": dict(failures.most_common()),
        }
    )


class AnswerScores(Protocol):
    """Scores answers, as a verifier does."""

    def __call__(self, prompts: Sequence[Messages], answers: Sequence[str]) -> np.ndarray:
        """Return a score for each answer, higher is better; NaN where there is none."""


def judge_by_scores(contests: Sequence[Contest], scores: AnswerScores, name: str, confidence: float) -> Judgement:
    """Return the verdicts of a verifier on at least one pair of answers: the one with the higher score wins.

    Args:
        name: of the verifier.
    """
    prompts = [contest.prompt for contest in contests]
    found = scores(prompts * 2, [*(contest.older for contest in contests), *(contest.newer for contest in contests)])
    gains = found[len(contests) :] - found[: len(contests)]
    verdicts = {
        contest.id: "failed" if np.isnan(gain) else "tie" if gain == 0 or contest.older == contest.newer
        else "newer" if gain > 0 else "older"
        for contest, gain in zip(contests, gains.tolist(), strict=True)
    }  # fmt: skip
    n_failed = sum(verdict == "failed" for verdict in verdicts.values())
    return _judgement(contests, f"verifier {name}", verdicts, confidence).model_copy(
        update={"failures": {"the chat template cannot show the prompt or an answer": n_failed} if n_failed else {}}
    )


def _judgement(contests: Sequence[Contest], judge: str, verdicts: dict[str, str], confidence: float) -> Judgement:
    judged = [contest for contest in contests if verdicts[contest.id] != "failed"]
    scores = [{"newer": 1.0, "older": 0.0, "tie": 0.5}[verdicts[contest.id]] for contest in judged]
    clusters = Clusters.of([conversation_key(contest.prompt) for contest in judged])
    return Judgement(
        judge=judge,
        win_rate=win_rate(scores, confidence, clusters) if scores else None,
        n_disagreed=0,
        n_failed=len(verdicts) - len(scores),
        failures={},
        verdicts=verdicts,
    )


def load_judge(section: JudgeSection) -> Judge | None:
    """Return the judge of a config, or None if it names none.

    Raises:
        UserError: the function cannot be imported, or the API key is not in the environment.
    """
    if section.function:
        judge: Judge = load_function(section.function, "evaluation.judge.function")
        return judge
    return Endpoint(section) if section.base_url else None


def load_function(name: str, setting: str) -> Any:
    """Return the function that a setting names as `module:function`.

    Raises:
        UserError: it cannot be imported.
    """
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{setting}: {name} cannot be imported ({error}): write it as module:function, and put the module on PYTHONPATH"
        ) from error


def _ask(judge: Judge, prompt: Messages, first: str, second: str, failures: Counter[str]) -> str:
    try:
        verdict = judge(prompt, first, second)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 (user code: any exception means one missing answer, not the end of the evaluation)
        lines = str(error).strip().splitlines()
        failures[f"{type(error).__name__}: {lines[0][:120] if lines else 'no reason given'}"] += 1
        return "failed"
    if verdict not in VERDICTS.values():
        failures[f"returned {verdict!r} instead of first, second or tie"] += 1
        return "failed"
    return verdict


class Endpoint(ChatEndpoint):
    """A judge model at an endpoint. Answers with a verdict are cached, so that no question is asked twice."""

    def __init__(self, section: JudgeSection) -> None:
        super().__init__(section, "evaluation.judge")
        self._section = section
        self._cache = cache_dir() / "judge"

    def __call__(self, prompt: Messages, first: str, second: str) -> Verdict:
        """Return the verdict, from the cache or from the model.

        Raises:
            NoVerdict: the answer contains no verdict.
            requests.RequestException: the endpoint did not answer.
        """
        conversation = "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)
        question = QUESTION.format(prompt=conversation, first=first, second=second)
        body = self.body(
            [
                {"role": "system", "content": SYSTEM.format(criteria=self._section.criteria)},
                {"role": "user", "content": question},
            ]
        )
        key = hashlib.sha256(json.dumps([self.url, body], sort_keys=True).encode()).hexdigest()
        cached = self._cache / f"{key}.json"
        if verdict := _verdict(_read(cached)):
            return verdict
        answer = self.answer(body)
        verdict = _verdict(answer)
        if verdict is None:
            raise NoVerdict("the answer does not end with [[A]], [[B]] or [[C]]")
        _write(cached, json.dumps(answer))
        return verdict


def _verdict(answer: str | None) -> Verdict | None:
    """Return the verdict at the end of an answer: one that is quoted before is not the judge's."""
    found = re.search(r"\[\[([ABC])\]\]\W*$", answer or "")
    return VERDICTS[found.group(1)] if found else None


def _read(path: Path) -> str | None:
    """Return a cached answer; None if there is none, or the file is damaged."""
    try:
        answer = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return answer if isinstance(answer, str) else None


def _write(path: Path, text: str) -> None:
    """Write a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, encoding="utf-8", delete=False) as file:
        file.write(text)
    Path(file.name).replace(path)


def win_rate(scores: Sequence[float], confidence: float, clusters: Clusters | None = None) -> WinRate:
    """Return the win rate of at least one score: 1 for a win, 0 for a loss, one half for a tie, or the mean of opinions.

    Args:
        clusters: conversations of the scores; None if each has its own.
    """
    points = 2 * np.array(scores) - 1
    found = paired_gain(points, clusters or Clusters.single(len(points)), confidence)
    value, low, high = ((1 + end) / 2 for end in (found.value, found.low, found.high))
    return WinRate(
        share=Estimate(value=value, low=low, high=high),
        n_prompts=found.n_prompts,
        n_wins=int((points > 0).sum()),
        n_ties=int((points == 0).sum()),
        n_losses=int((points < 0).sum()),
        p_value=found.p_value,
    )
