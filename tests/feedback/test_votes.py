"""People choosing between two answers: the page, the win rate with the agreement of raters, and pairs to train on."""

import json

import pytest
from support.run_reports import make_report

from posttrain.config import DataSection, Source
from posttrain.data.loader import load_preferences
from posttrain.errors import UserError
from posttrain.feedback.ab import ab_page, digest, dpo_is_left, shown_pairs
from posttrain.feedback.vote_files import read_ballots, the_answers
from posttrain.feedback.vote_pairs import voted_pairs
from posttrain.feedback.vote_score import ab_score, krippendorff_alpha


@pytest.fixture
def generations():
    return make_report().generations


def vote(id, who):
    """The choice that prefers a model's answer, or neither."""
    return "tie" if who == "tie" else "left" if (who == "dpo") == dpo_is_left(id) else "right"


def ballot(folder, generations, name="choices.json", answers=None, rater="", **choices):
    path = folder / name
    content = {"answers": answers or digest(generations), "choices": choices} | ({"rater": rater} if rater else {})
    path.write_text(json.dumps(content))
    return path


def votes_of(folder, generations, *raters):
    """A file of each rater, who votes on the first prompts in order: `dpo`, `sft`, `tie` or None."""
    ids = [exchange.id for exchange in generations.exchanges]
    return [
        ballot(
            folder,
            generations,
            f"{i}.json",
            rater=f"rater-{i}",
            **{id: vote(id, who) for id, who in zip(ids, votes, strict=False) if who},
        )
        for i, votes in enumerate(raters)
    ]


def test_sides_are_shuffled_and_models_unnamed(generations):
    sides = [dpo_is_left(exchange.id) for exchange in generations.exchanges]
    assert 5 < sum(sides) < 25
    page = ab_page(generations)
    assert page.count("<form") == 30
    assert "dpo" not in page.lower()
    assert "sft" not in page.lower()
    for exchange, left in zip(generations.exchanges, sides, strict=True):
        form = page[page.index(f'data-id="{exchange.id}"') :].split("</form>")[0]
        assert (form.index(f"some text {exchange.id[5:]}<") < form.rindex("some text<")) == left


def test_a_hostile_answer_is_text_on_the_page():
    page = ab_page(make_report(text="</pre><script>alert(1)</script>").generations)
    assert page.count("<script>") == 1  # the page's own
    assert "&lt;script&gt;alert(1)" in page


def same_answers(generations, n):
    """The same with equal answers to the first `n` prompts."""
    exchanges = [
        one.model_copy(update={"responses": dict.fromkeys(one.responses, one.responses["sft"])}) if i < n else one
        for i, one in enumerate(generations.exchanges)
    ]
    return generations.model_copy(update={"exchanges": exchanges})


def test_identical_answers_are_left_out_and_counted(generations):
    found = same_answers(generations, 2)
    assert [pair.id for pair in shown_pairs(found)] == [one.id for one in generations.exchanges[2:]]
    assert "2 prompts were left out, because both answers are the same" in ab_page(found)
    with pytest.raises(UserError, match="the same answer to all 30 prompts"):
        ab_page(same_answers(generations, 30))


def test_choices_are_counted_by_hand(generations, tmp_path):
    """Two for DPO, one tie, one for SFT: 2.5 of 4."""
    one, two = votes_of(tmp_path, generations, ["dpo", "dpo", "tie", "sft"], ["tie"])
    found = ab_score(generations, read_ballots([one]))
    assert (found.overall.n_wins, found.overall.n_ties, found.overall.n_losses) == (2, 1, 1)
    assert found.overall.share.value == 2.5 / 4
    both = ab_score(generations, read_ballots([one, two]))
    assert (
        both.overall.share.value == (0.75 + 1 + 0.5 + 0) / 4
    )  # a prompt with two opinions is their mean, and counts once
    assert (both.n_raters, both.n_votes) == (2, 5)


def test_the_same_file_twice_counts_once(generations, tmp_path):
    (file,) = votes_of(tmp_path, generations, ["dpo", "sft"])
    found = ab_score(generations, read_ballots([file, file]))
    assert (found.n_raters, found.n_votes, found.agreement) == (1, 2, None)


def test_further_questions_have_a_rate_of_their_own(generations, tmp_path):
    first, second = (exchange.id for exchange in generations.exchanges[:2])
    choices = {
        first: {"choice": vote(first, "dpo"), "harmless": vote(first, "sft"), "comment": "rude"},
        second: {"choice": vote(second, "dpo")},
    }
    found = ab_score(generations, read_ballots([ballot(tmp_path, generations, **choices)]))
    assert found.overall.share.value == 1
    assert {name: rate.share.value for name, rate in found.questions.items()} == {"harmless": 0}


# Krippendorff 2011, example C: four observers of twelve units, of which the last one has a single value.
OBSERVED = [
    [1, 1, 1], [2, 2, 3, 2], [3, 3, 3, 3], [3, 3, 3, 3], [2, 2, 2, 2], [1, 2, 3, 4], [4, 4, 4, 4], [1, 1, 2, 1], [2, 2, 2, 2],
    [5, 5, 5], [1, 1], [3],
]  # fmt: skip


def test_agreement_of_the_published_example():
    """Interval data: alpha is 0.849."""
    assert krippendorff_alpha(OBSERVED) == pytest.approx(0.849, abs=5e-4)


def test_agreement_by_hand():
    """(1, 1), (0, 0), (1, 0): observed 2 / 6, expected 2 x 3 x 3 / 30 = 0.6, so 1 - 5 / 9."""
    assert krippendorff_alpha([[1, 1], [0, 0], [1, 0]]) == pytest.approx(4 / 9)
    assert krippendorff_alpha([[1, 1], [0, 0]]) == 1
    assert krippendorff_alpha([[1, 0], [0, 1]]) == pytest.approx(-0.5)
    assert krippendorff_alpha([[1], [0]]) is None  # nobody judged the same
    assert krippendorff_alpha([[1, 1], [1, 1]]) is None  # nobody could disagree


def test_votes_become_pairs_that_a_source_reads(generations, tmp_path):
    """Two of three for DPO, all for SFT, one each, and a tie: two pairs, two without a majority."""
    files = votes_of(
        tmp_path,
        generations,
        ["dpo", "sft", "dpo", "tie"],
        ["dpo", "sft", "sft", "tie"],
        ["sft", "sft", None, "dpo"],
    )
    found = voted_pairs(generations, read_ballots(files))
    assert [row["annotators_agree"] for row in found.rows] == [pytest.approx(2 / 3), 1]
    assert [row["chosen"][0]["content"] for row in found.rows] == ["some text 0", "some text"]
    assert [row["rejected"][0]["content"] for row in found.rows] == ["some text", "some text 1"]
    assert found.n_ties == 2
    with pytest.raises(UserError, match="none of the 1 prompts with votes has a majority"):
        voted_pairs(generations, read_ballots(votes_of(tmp_path, generations, ["tie"])))


def test_voted_pairs_are_preferences(generations, tmp_path):
    exchanges = [
        one.model_copy(update={"prompt": [{"role": "user", "content": f"Question number {i}?"}]})
        for i, one in enumerate(generations.exchanges)
    ]
    asked = generations.model_copy(update={"exchanges": exchanges})
    files = votes_of(tmp_path, asked, ["dpo"] * 30, ["dpo", "sft"] * 15, ["dpo"] * 30)
    (tmp_path / "voted.jsonl").write_text(voted_pairs(asked, read_ballots(files)).jsonl())
    data = DataSection(sources=[Source(path=str(tmp_path / "voted.jsonl"))], test_size=0.3)
    preferences, report = load_preferences(data)
    (figures,) = report.figures.by_source.values()
    assert (report.n_kept, figures.n_annotated) == (30, 30)
    assert figures.agreement == pytest.approx((1 + 2 / 3) / 2)  # all three, or two of three
    assert {row["chosen"][0]["content"][:9] for row in preferences.train} == {"some text"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "contains no choices"),
        ('{"answers": "x", "choices": {"a": "middle"}}', "contains no choices"),
        ('{"answers": "x", "choices": {"a": {"choice": "left", "comment": 3}}}', "contains no choices"),
        ('{"answers": "x", "choices": {"a": "left"}}', "page of another run"),
    ],
)
def test_a_file_without_choices_is_an_error_in_one_line(text, message, generations, tmp_path):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(UserError, match=message):
        ab_score(generations, read_ballots([tmp_path / "file.json"]))
    with pytest.raises(UserError, match="nothing was chosen"):
        read_ballots([ballot(tmp_path, generations)])


def test_votes_on_two_runs_are_not_mixed(generations, tmp_path):
    id = generations.exchanges[0].id
    files = [ballot(tmp_path, generations, f"{name}.json", name, **{id: "left"}) for name in ("a", "b")]
    with pytest.raises(UserError, match="about the answers of 2 runs"):
        the_answers(read_ballots(files))
