"""The split of a prompt depends on the prompt and the seed only."""

import pytest

from posttrain.data.splits import choose_split, normalise, prompt_key


def key(text, role="user"):
    return prompt_key([{"role": role, "content": text}])


@pytest.mark.parametrize("text", ["Straße  eins", " strasse\teins\n", "STRASSE\u00a0EINS", "Straße ｅｉｎｓ"])
def test_prompt_key_ignores_case_white_space_and_unicode_form(text):
    assert normalise(text) == "strasse eins"
    assert key(text) == key("Straße eins")


def test_prompt_key_depends_on_words_and_roles():
    assert len({key("a b"), key("ab"), key("a b", role="system")}) == 3


def test_split_of_a_prompt_never_changes():
    """Expected values are computed with hashlib. If they change, the held-out sets of all users change."""
    marks = {"train": ".", "validation": "v", "test": "T"}
    assert (
        "".join(marks[choose_split(key(f"prompt {i}"), 0, 0.2, 0.2)] for i in range(24)) == ".vvv..T..TTT....T....v.."
    )


def test_split_sizes_are_shares_and_depend_on_the_seed():
    keys = [key(str(i)) for i in range(5000)]
    splits = [choose_split(k, 0, 0.1, 0.05) for k in keys]
    # four standard deviations of a binomial count: 4 sqrt(5000 x 0.1 x 0.9) = 85, and 62 for 0.05
    assert splits.count("test") == pytest.approx(500, abs=85)
    assert splits.count("validation") == pytest.approx(250, abs=62)
    assert splits != [choose_split(k, 1, 0.1, 0.05) for k in keys]
    assert {choose_split(k, 0, 0.0, 0.0) for k in keys} == {"train"}


def test_larger_test_split_contains_the_smaller_one():
    keys = [key(str(i)) for i in range(1000)]
    small, large = ({k for k in keys if choose_split(k, 0, size, 0.05) == "test"} for size in (0.1, 0.2))
    assert small < large
