"""Layouts with a prompt, two answers and a label of the better one.

- `two_answers`: the values of the label are judged together for each source (`posttrain.data.formats.label_scale`).
- `llmbar`: input, output_1, output_2 and the number of the better one. Source: Zeng et al. 2023, princeton-nlp/LLMBar.
- `pku_saferlhf`: `better_response_id` 0 chooses response_0, 1 response_1. Source: the card of PKU-Alignment/PKU-SafeRLHF.
- `helpsteer2` and `helpsteer3`: a preference from -3, the first answer is much better, to 3, the second one is; 0 is a tie.
  Source: the cards of nvidia/HelpSteer2 (`data_dir: preference`) and nvidia/HelpSteer3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.config.layouts import REQUIRED_COLUMNS
from posttrain.data.checks import Unusable
from posttrain.data.formats.layout import Pair, Scored, Values, as_number, by_label
from posttrain.data.formats.preference.pair_columns import as_prompt
from posttrain.data.formats.turns import as_turns


@dataclass(frozen=True)
class ComparisonColumns:
    """The columns of a layout."""

    prompt: str
    first: str
    second: str
    label: str
    is_signed: bool = False
    """The label is a number: below 0 if the first answer is better, above 0 if the second one is."""
    is_judged: bool = False
    """The meaning of the label is decided by all its values in a source."""

    @property
    def COLUMNS(self) -> tuple[str, ...]:
        """The columns that the layout requires."""
        return (self.prompt, self.first, self.second, self.label)

    @property
    def JUDGED(self) -> tuple[str, str, str] | None:
        """The columns of the label and of the two answers, if all labels of a source decide their meaning."""
        return (self.label, self.first, self.second) if self.is_judged else None

    def matches(self, columns: set[str], rows: Sequence[Values]) -> bool:
        """Return whether the columns and first rows have this layout."""
        return columns.issuperset(self.COLUMNS)

    def parse(self, row: Values) -> Pair | Scored:
        """Return the pair in a row. The score of a signed label is the strength of the preference, against 0."""
        prompt = as_prompt(row.get(self.prompt))
        first, second = (as_turns(row.get(name), "assistant") for name in (self.first, self.second))
        label = row.get(self.label)
        if self.is_judged or self.label == "label":
            return by_label(prompt, first, second, label)
        number = as_number(label)
        if not self.is_signed:
            if number not in (0, 1):
                raise Unusable("unknown_label")
            return by_label(prompt, first, second, "second" if number == 1 else "first")
        if not -3 <= number <= 3:
            raise Unusable("unknown_label")
        if number == 0:
            raise Unusable("tie")
        return Scored(by_label(prompt, first, second, "first" if number < 0 else "second"), abs(number), 0.0)


LAYOUTS = {
    "two_answers": ComparisonColumns("prompt", "response_1", "response_2", "label", is_judged=True),
    "llmbar": ComparisonColumns("input", "output_1", "output_2", "label", is_judged=True),
    "pku_saferlhf": ComparisonColumns("prompt", "response_0", "response_1", "better_response_id"),
    "helpsteer2": ComparisonColumns("prompt", "response_1", "response_2", "preference_strength", is_signed=True),
    "helpsteer3": ComparisonColumns("context", "response1", "response2", "overall_preference", is_signed=True),
}
"""Layout by name."""
assert all(REQUIRED_COLUMNS[name] == layout.COLUMNS for name, layout in LAYOUTS.items())
