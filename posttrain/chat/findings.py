"""What the checks of rendered rows found, and what happens to such rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from posttrain.config.check_policies import REASONS, TOKEN_CHECKS, policy_of
from posttrain.errors import UserError

N_EXAMPLES = 3
REMEDIES = {
    "template_refuses": "choose another model.chat_template; set `template_refuses: fold` to put a refused system message in front "
    "of the first user message, or `drop`",
    "template_leaves_out": "choose a model.chat_template that shows it, or set `template_leaves_out: keep`",
    "control_tokens": "correct the rows, or set `control_tokens: escape` to encode them as plain text",
    "already_templated": "take the marks of the chat template out of the rows; set `already_templated: unwrap` if they are those "
    "of model.chat_template",
    "stop_in_answer": "remove it from the rows, or set `stop_in_answer: fix`",
    "no_thoughts": "add thoughts to the answers, turn thinking off where the template can (model.chat_template_kwargs: "
    "{enable_thinking: false}), or set `no_thoughts: keep` to train on empty thoughts",
}
"""What to do about each check, in an error message."""


@dataclass
class Findings:
    """Counts the rows that each check finds, and the rows that are dropped for it."""

    checks: Mapping[str, str] = field(default_factory=dict)
    """Policies that differ from the default, as in `data.checks`."""
    found: Counter[str] = field(default_factory=Counter)
    """Rows by check."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Rows that are not used, by the check that decided it."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Rows by what the template leaves out of them."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """A few rows by check."""
    n_rows: int = 0

    def add(self, check: str, row: str, note: str = "") -> bool:
        """Count a row that a check finds, and return whether it is dropped.

        Args:
            row: source and id of the row.
            note: what was found in it.
        """
        self.found[check] += 1
        examples = self.examples.setdefault(check, [])
        if len(examples) < N_EXAMPLES:
            examples.append(f"{row} ({note})" if note else row)
        drops = policy_of(check, self.checks) in ("drop", "fail")
        self.dropped[check] += drops
        return drops

    def policy(self, check: str) -> str:
        """Return the policy of a check."""
        return policy_of(check, self.checks)

    def counts(self) -> dict[str, int]:
        """Return the number of dropped rows by check, without those that dropped none."""
        return {name: n for name in TOKEN_CHECKS if (n := self.dropped[name])}

    def check_policies(self, template: str, max_drop_share: float) -> None:
        """Check that no row fails a check whose policy is `fail`, and that not too many rows are dropped.

        Raises:
            UserError: with the counts, example rows and what to do.
        """
        failing = [name for name in TOKEN_CHECKS if self.found[name] and self.policy(name) == "fail"]
        if failing:
            raise UserError(
                f"data.checks: rows fail a check whose policy is `fail`, under the chat template {template}:\n"
                f"{self._summary(failing)}"
            )
        n_dropped = self.dropped.total()
        if n_dropped > max_drop_share * max(self.n_rows, 1):
            raise UserError(
                f"{n_dropped} of {self.n_rows} rows cannot be used with the chat template {template}, more than "
                f"data.max_drop_share {max_drop_share:g} allows:\n{self._summary(list(self.counts()))}\n"
                "To drop these rows, raise data.max_drop_share"
            )

    def _summary(self, checks: list[str]) -> str:
        return "\n".join(
            f"  {name}: {self.found[name]} rows: {REASONS[name]}, for example {'; '.join(self.examples[name])}\n"
            f"    {REMEDIES[name]}"
            for name in checks
        )
