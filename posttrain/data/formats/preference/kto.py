"""Layout of unpaired rows, as for KTO: a prompt, one answer, and whether it is good. Two rows of a prompt make a pair.

TRL's rows have prompt, completion and label; ms-swift's messages and label; LLaMA-Factory's conversations, or instruction, input
and output, with `kto_tag`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from posttrain.config.layouts import CONTEXT_COLUMNS, KTO_COLUMNS, REQUIRED_COLUMNS
from posttrain.data.checks import Unusable
from posttrain.data.formats.label_scale import label_text
from posttrain.data.formats.layout import Example, Found, Pair, Values, instruct, split_off_response
from posttrain.data.formats.preference.pair_columns import as_prompt
from posttrain.data.formats.turns import as_turns
from posttrain.data.splits import prompt_key
from posttrain.errors import UserError

COLUMNS = REQUIRED_COLUMNS["kto"]
_VERDICTS = {
    **dict.fromkeys(("true", "1", "yes", "good", "desirable", "thumbs_up", "up"), True),
    **dict.fromkeys(("false", "0", "-1", "no", "bad", "undesirable", "thumbs_down", "down"), False),
}


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Return whether the columns have this layout and the first labels are verdicts."""
    names = _columns(columns)
    return names is not None and any(label_text(row.get(names[-1])) in _VERDICTS for row in rows)


def group(rows: Sequence[Values]) -> list[list[Found] | Unusable]:
    """Return the result for each row: a good answer's pair with a bad answer to its prompt, or why there is none.

    The n-th good answer to a prompt is paired with its n-th bad answer. The list of the bad answer is empty.

    Raises:
        UserError: no prompt has both verdicts.
    """
    outcomes: list[list[Found] | Unusable] = [Unusable("no_rival") for _ in rows]
    answers: dict[Any, dict[bool, list[tuple[int, Example]]]] = defaultdict(lambda: {True: [], False: []})
    for i, row in enumerate(rows):
        try:
            example, is_good = _parse(row)
            context = repr([(name, row[name]) for name in sorted(CONTEXT_COLUMNS) if name in row])
            answers[prompt_key(example.prompt), context][is_good].append((i, example))
        except UnicodeEncodeError:
            outcomes[i] = Unusable("broken_encoding")
        except Unusable as unusable:
            outcomes[i] = unusable
    for verdicts in answers.values():
        for (good, chosen), (bad, rejected) in zip(verdicts[True], verdicts[False], strict=False):
            outcomes[good] = [Pair(chosen.prompt, chosen.completion, rejected.completion)]
            outcomes[bad] = []
    if len(answers) > 1 and not any(outcomes[i] == [] for i in range(len(rows))):
        n_good, n_bad = (sum(len(verdicts[is_good]) for verdicts in answers.values()) for is_good in (True, False))
        raise UserError(
            f"the rows are unpaired answers with a verdict, as for KTO ({n_good} good, {n_bad} bad), "
            "and no prompt has both a good and a bad answer, so there is no pair to train DPO on: use rows with several answers "
            "to a prompt, or the good ones as `sft.dataset`"
        )
    return outcomes


def _columns(columns: set[str]) -> tuple[str, ...] | None:
    return next((names for names in KTO_COLUMNS if columns.issuperset(names)), None)


def _parse(row: Values) -> tuple[Example, bool]:
    names = _columns(set(row))
    if names is None:
        raise Unusable("not_text")
    verdict = _VERDICTS.get(label_text(row[names[-1]]) or "")
    if verdict is None:
        raise Unusable("unknown_label")
    if names[0] in ("messages", "conversations"):
        return split_off_response(as_turns(row[names[0]], "user")), verdict
    completion = as_turns(row[names[1]], "assistant")
    if names[0] == "instruction":
        return Example(instruct(row["instruction"], row.get("input")), completion), verdict
    return Example(as_prompt(row["prompt"]), completion), verdict
