"""Table 5: what a call of each method takes, against the printed seconds and their order."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from unbackdoor.leaderboard.paper import METHODS, ORDER, printed_seconds
from unbackdoor.leaderboard.tables import Table


@dataclass(frozen=True)
class Timing:
    """Seconds of each method of the paper's order, where it was run.

    Attributes:
        data: the data set's title.
        seconds: method -> the median over attacks of medians over seeds.
        printed: method -> the paper's.
    """

    data: str
    seconds: dict[str, float]
    printed: dict[str, float]

    @property
    def words(self) -> str:
        """Whether the paper's order holds, and where it does not."""
        names = [m for m in ORDER if m in self.seconds]
        wrong = [
            f"{METHODS[a]} ({self.seconds[a]:.3g} s) is not faster than {METHODS[b]} ({self.seconds[b]:.3g} s)"
            for a, b in itertools.pairwise(names)
            if self.seconds[a] >= self.seconds[b]
        ]
        order = " < ".join(METHODS[m] for m in names)
        if not wrong:
            return f"The paper's order ({order}) holds."
        return f"The paper's order ({order}) does not hold: {'; '.join(wrong)}."


def timing(table: Table) -> Timing | None:
    """None where fewer than three methods of the paper's order were run."""
    found = {method: seconds for method in ORDER if (seconds := table.seconds(method)) is not None}
    if len(found) < 3:
        return None
    paper = {method: value for method in found if (value := printed_seconds(table.data, method)) is not None}
    return Timing(table.titles["data"], found, paper)
