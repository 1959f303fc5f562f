"""The answers of the models as a page shows them."""

from __future__ import annotations

from typing import Any

from posttrain.evaluation.answers.answer_figures import AnswerComparison
from posttrain.evaluation.answers.generations import Exchange, Generations
from posttrain.evaluation.answers.judge import WinRate
from posttrain.evaluation.labels import ANSWERS, NAMES, STAGES, percent, plain
from posttrain.reporting.html import Table, first_line

N_UNFOLDED, N_LISTED = 3, 20
"""How many exchanges are open at first, and how many are listed before the rest is folded."""


def answers_view(generations: Generations) -> dict[str, Any]:
    """Return the figures of the answers and the exchanges themselves."""
    stages = generations.stages
    rows = [
        ["stopped, %", *(percent(found.stop_rate) for found in stages.values())],
        ["tokens", *(plain(found.n_tokens) for found in stages.values())],
        ["repeated 4-grams, %", *(percent(found.repetition) for found in stages.values())],
        ["distinct bigrams, %", *(f"{100 * found.distinct_2:.1f}" for found in stages.values())],
    ]
    terms = [(ANSWERS[name].short, ANSWERS[name].meaning) for name in ("stop_rate", "repetition")]
    terms.append(
        ("distinct bigrams", "different pairs of neighbouring tokens over all such pairs; low if answers are alike")
    )
    if any(found.true_reward for found in stages.values()):
        rows.append(["true reward", *(plain(found.true_reward) for found in stages.values())])
    decoding = f"temperature {generations.temperature:g}" if generations.temperature else "greedy decoding"
    shown = [_exchange(exchange, i < N_UNFOLDED) for i, exchange in enumerate(generations.exchanges)]
    return {
        "intro": f"{len(shown)} test prompts, at most {generations.max_new_tokens} tokens per answer, {decoding}.",
        "figures": Table(["", *(STAGES[stage] for stage in stages)], rows),
        "terms": terms,
        "won": [
            _won(versus, by, rate)
            for versus, comparison in generations.comparisons.items()
            for by, rate in comparison.win_rates.items()
        ],
        "judge": " ".join(_judge_failures(versus, found) for versus, found in generations.comparisons.items()).strip(),
        "listed": shown[:N_LISTED],
        "more": shown[N_LISTED:],
        "n_more": f"{len(shown) - N_LISTED} more",
    }


def _won(versus: str, by: str, rate: WinRate) -> str:
    newer, older = versus.split("_vs_")
    return (
        f"By {by}, {STAGES[newer]}'s answer beats {NAMES[older]}'s on {percent(rate.share)} % of {rate.n_prompts} prompts: "
        f"{rate.n_wins} won, {rate.n_ties} tied, {rate.n_losses} lost, p = {rate.p_value:.2g}."
    )


def _judge_failures(versus: str, comparison: AnswerComparison) -> str:
    judge = comparison.by_judge
    if judge is None:
        return ""
    reasons = ", ".join(f"{reason} ({n})" for reason, n in judge.failures.items())
    against = "Against the champion's answers, the" if versus.endswith("_champion") else "The"
    return (
        f"{against} judge failed on {judge.n_failed} prompts{f': {reasons}' if reasons else ''}. On {judge.n_disagreed} prompts it "
        "named different winners when the answers were swapped; these count as ties."
    )


def _exchange(exchange: Exchange, is_open: bool) -> dict[str, Any]:
    responses = []
    for stage, response in exchange.responses.items():
        about = [f"{response.n_tokens} tokens", "stopped" if response.stopped else "cut off at the limit"]
        if response.true_reward is not None:
            about.append(f"true reward {response.true_reward:.2f}")
        responses.append({"stage": STAGES[stage], "text": response.text, "about": ", ".join(about)})
    return {
        "summary": first_line(exchange.prompt[-1]["content"]),
        "is_open": is_open,
        "prompt": "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in exchange.prompt),
        "responses": responses,
    }
