"""The gate's conditions on answers, one test per setting, with figures worked by hand."""

import pytest
from support.figures import figures_of, table

from posttrain.config import EvaluationSection, GateSection
from posttrain.evaluation.answers.answer_figures import (
    AnswerComparison,
    Response,
    compare_answers,
    figures_by_chart,
    summarise_answers,
)
from posttrain.evaluation.answers.generations import Exchange, Generations
from posttrain.evaluation.answers.judge import Judgement, win_rate
from posttrain.evaluation.diagnosis.rules import RULES
from posttrain.evaluation.figures import Finding
from posttrain.evaluation.gate.answer_conditions import FINDINGS
from posttrain.evaluation.gate.decision import decide

SECTION = EvaluationSection(n_bootstrap=500)
N = 40


def answer(text="a good answer", stopped=True, repetition=0.0, true_reward=None) -> Response:
    return Response(text=text, n_tokens=3, stopped=stopped, repetition=repetition, true_reward=true_reward)


def some(n: int, changed: Response, of: int = N) -> list[Response]:
    """Answers of which n are changed."""
    return [changed] * n + [answer()] * (of - n)


def judged(n_wins: int, of: int = N) -> Judgement:
    rate = win_rate([1.0] * n_wins + [0.0] * (of - n_wins), 0.95)
    return Judgement(judge="j", win_rate=rate, n_disagreed=0, n_failed=0, failures={}, verdicts={})


def generations(older="sft", judgement=None, **answers: list[Response]) -> Generations:
    """The answers of each stage; those of DPO are compared with one other stage's."""
    n = len(answers["dpo"])
    answers = {older: [answer()] * n} | answers
    return Generations(
        max_new_tokens=8,
        temperature=0,
        seed=0,
        stages={stage: summarise_answers(found, [[1, 2]] * n, SECTION) for stage, found in answers.items()},
        comparisons={f"dpo_vs_{older}": compare_answers(answers["dpo"], answers[older], judgement, SECTION)},
        exchanges=[
            Exchange(id=str(i), source="s", prompt=[], responses={stage: found[i] for stage, found in answers.items()})
            for i in range(n)
        ],
        digests={},
    )


def reasons(found: Generations, champion=False, **gate) -> list[str]:
    """Reasons against a model that ranks 15 points more pairs correctly."""
    figures = figures_of(table(champion_margins=table_of_sft()) if champion else table())
    return decide(figures, GateSection(**gate), found).reasons[1:]


def table_of_sft():
    return table()["sft_chosen_logps"].to_numpy() - table()["sft_rejected_logps"].to_numpy()


def test_differences_of_answers_by_hand():
    """Of 4 answers 1 no longer stops, 1 became empty, 1 repeats 0.4; lengths + 1 sum up to 14 + 14 + 1 + 1 and 4 times 14."""
    newer = [answer(stopped=False), answer(repetition=0.4), answer(text=""), answer(text="")]
    older = [answer(), answer(), answer(), answer()]
    found = compare_answers(newer, older, None, SECTION)
    assert (found.stop_rate.value, found.repetition.value, found.empty.value) == pytest.approx((-0.25, 0.1, 0.5))
    assert found.length_ratio.value == pytest.approx(30 / 56)
    assert found.by_true_reward is None


def test_true_rewards_decide_prompt_by_prompt_and_equal_sums_tie():
    newer = [answer(true_reward=reward) for reward in (1.0, 0.1 + 0.2, -1.0)]
    older = [answer(true_reward=reward) for reward in (0.0, 0.3, 0.0)]
    rate = compare_answers(newer, older, None, SECTION).by_true_reward
    assert (rate.n_wins, rate.n_ties, rate.n_losses) == (1, 1, 1)


def test_equal_answers_are_promoted():
    assert reasons(generations(dpo=some(0, answer()))) == []


@pytest.mark.parametrize(("n_wins", "blocked"), [(13, True), (14, False), (20, False), (0, True)])
def test_win_rate_is_refused_if_its_upper_bound_is_below_one_half(n_wins, blocked):
    """With a win and a loss more, 13 of 40 is one half of 1 - 14 / 42 +- 2.023 x sqrt((1 - 1 / 9) / 42), so 18.6 to 48.0 %.
    14 of 40 reaches 50.7 %."""
    found = generations(judgement=judged(n_wins), dpo=some(0, answer()))
    assert bool(reasons(found)) == blocked
    if n_wins == 13:
        assert (
            "by the judge j, the answers win only 32.5 (18.6-48.0) % of the comparisons with those of SFT"
            in reasons(found)[0]
        )
    assert not reasons(found, min_win_rate=0.0)


def test_hidden_reward_judges_where_the_data_have_one():
    worse = generations(dpo=[answer(true_reward=-1.0)] * N, sft=[answer(true_reward=0.0)] * N)
    assert "by the true reward, the answers win only 0.0" in reasons(worse)[0]
    assert figures_by_chart(worse.comparisons) == {"win/true_reward": 0.0}


def test_champion_is_the_opponent_where_there_is_one():
    """DPO loses to the champion's answers; that it wins against SFT's does not matter."""
    found = generations("champion", judged(0), dpo=some(0, answer()), sft=some(0, answer()))
    assert "with those of the champion" in reasons(found, champion=True)[0]
    assert figures_by_chart(found.comparisons) == {"win_champion/judge": 0.0}
    won = found.comparisons["dpo_vs_champion"].model_copy(update={"by_judge": judged(N)})
    both = {"dpo_vs_sft": found.comparisons["dpo_vs_champion"], "dpo_vs_champion": won}
    assert reasons(found.model_copy(update={"comparisons": both}), champion=True) == []


@pytest.mark.parametrize(
    ("changed", "few", "many", "setting", "message"),
    [
        (answer(stopped=False), 4, 12, "max_stop_loss", "fewer answers end with a stop token against SFT: -30.0"),
        (answer(repetition=0.9), 4, 12, "max_repetition_gain", "the answers repeat themselves more against SFT: +27.0"),
        (answer(text=""), 2, 10, "max_empty_gain", "more answers are empty against SFT: +25.0"),
    ],
)
def test_degenerate_answers_are_refused(changed, few, many, setting, message):
    """A few bad answers may be chance; the interval of many lies beyond what is allowed."""
    assert reasons(generations(dpo=some(few, changed))) == []
    found = generations(dpo=some(many, changed))
    (reason,) = reasons(found)
    assert message in reason
    assert f"gate.{setting}" in reason
    assert reasons(found, **{setting: 1.0}) == []


@pytest.mark.parametrize(("words", "message"), [(6, ""), (16, "far longer"), (0.2, "far shorter")])
def test_answers_of_another_length_are_refused(words, message):
    """An answer of 13 characters, 1 added: 79 / 14 is 5.6, hence 30 of 40 answers of 6 times the length give 4.5."""
    text = "a good answer" * int(words) if words >= 1 else "ab"
    found = generations(dpo=[answer(text=text)] * N if words != 6 else some(10, answer(text=text)))
    assert bool(message) == bool(reasons(found))
    assert message in " ".join(reasons(found))
    assert reasons(found, max_length_ratio=20) == []


def test_answers_that_repeat_themselves_as_much_as_those_of_sft_are_refused():
    """Both models write nothing but repetitions: no difference, and no answer fit for use."""
    both = [answer(repetition=0.95)] * N
    found = generations(dpo=both, sft=both)
    assert "the answers repeat themselves: 95.0 (95.0-95.0) % of their 4-grams" in reasons(found)[0]
    assert reasons(found, max_repetition=0.96) == []


def test_few_answers_are_not_judged():
    found = generations(judgement=judged(0, 6), dpo=some(6, answer(stopped=False), 6))
    assert reasons(found) == []
    assert len(reasons(found, min_answers=6)) == 2


def test_findings_about_answers_block_by_the_settings_of_the_gate_alone():
    finding = Finding(
        rule="stop_rate_fell", severity="error", stage="dpo", title="t", evidence={}, threshold="", advice=""
    )
    assert decide(figures_of(table(), (finding,)), GateSection()).promoted


def test_rules_about_answers_are_errors_with_the_limits_of_the_gate():
    rules = {rule.name: rule for rule in RULES if rule.name in FINDINGS}
    assert rules.keys() == FINDINGS
    assert {rule.severity for rule in rules.values()} == {"error"}
    gate = GateSection()
    assert (rules["stop_rate_fell"].limit, rules["repetitive"].limit) == (gate.max_stop_loss, gate.max_repetition_gain)


def test_win_rates_name_who_decided():
    found = compare_answers([answer(true_reward=1.0)], [answer(true_reward=0.0)], judged(1, 1), SECTION)
    assert list(found.win_rates) == ["the judge j", "the true reward"]
    unjudged = judged(1, 1).model_copy(update={"win_rate": None})
    assert list(AnswerComparison(**(dict(found) | {"by_judge": unjudged})).win_rates) == ["the true reward"]


@pytest.mark.parametrize(
    ("n_wins", "promoted"),
    [
        (40, True),
        (30, True),  # 30 of 40: p = 0.0022 by the sign test
        (26, False),  # 26 of 40: p = 0.081
        (10, False),  # surely worse
    ],
)
def test_a_gate_that_decides_by_answers_needs_answers_that_are_surely_better(n_wins, promoted):
    found = generations(judgement=judged(n_wins), dpo=some(0, answer()))
    gate = GateSection(decide_by="answers", planned_looks=1)
    decided = decide(figures_of(table()), gate, found)
    assert decided.promoted is promoted
    assert f"{n_wins} won, 0 tied, {N - n_wins} lost" in decided.reasons[0]


def test_a_gate_that_decides_by_answers_does_not_ask_for_a_gain_in_ranking():
    """SFT and DPO rank alike here, which is no gain: by answers DPO is promoted, by ranking it is not."""
    same = figures_of(table(dpo_margins=table_of_sft()))
    found = generations(judgement=judged(40), dpo=some(0, answer()))
    assert decide(same, GateSection(decide_by="answers"), found).promoted
    assert not decide(same, GateSection(), found).promoted


def test_a_gate_that_decides_by_answers_refuses_without_answers():
    decided = decide(figures_of(table()), GateSection(decide_by="answers"))
    assert not decided.promoted
    assert "there are no judged answers of DPO and SFT" in decided.reasons[1]
