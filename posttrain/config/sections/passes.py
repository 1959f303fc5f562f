"""How many of its rows a training reads."""

from __future__ import annotations

import math

from posttrain.config.sections.section import Section


class Passes(Section):
    """The length of a training, as far as it decides which rows are read."""

    rows_per_step: int
    epochs: float
    max_steps: int | None

    def n_steps(self, n_rows: int) -> int:
        """Return the number of optimizer steps over `n_rows` rows. The last step of an epoch may have fewer rows."""
        if self.max_steps is not None:
            return self.max_steps
        return math.ceil(math.ceil(n_rows / self.rows_per_step) * self.epochs)

    def n_read(self, n_rows: int) -> int:
        """Return how many of `n_rows` rows are read at least once: the first ones in the order of the first epoch."""
        return min(n_rows, self.n_steps(n_rows) * self.rows_per_step)
