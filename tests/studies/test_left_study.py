"""The study of what a repair leaves: its table."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def study(study_named: Callable[[str], ModuleType]) -> ModuleType:
    return study_named("left")


def test_a_row_has_true_rates_and_the_medians_of_what_is_seen(study: ModuleType) -> None:
    row: dict[str, Any] = {
        "arch": "resnet18",
        "data": "cifar10",
        "attack": {"name": "badnet", "target": 3},
        "method": "forget",
        "round": 2,
        "acc": 0.84,
        "asr": 0.125,
        "recall": 0.7,
        "triggers": [[0.0, 0.1, 0.5], [0.0, 0.2, 0.6], [0.1, 0.3, 0.7]],
        "channels": [],
    }
    last = study.table([row]).splitlines()[-1]
    assert last == "| resnet18, cifar10 | badnet -> 3 | forget, 2 | 84.0 | 70.0 | 12.5 | 10 | 20 | 30 |  |"


def test_what_is_seen_of_a_network(study: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stub for each way: a trigger moves a tenth of its strength, a channel a half."""
    seen = []

    def success(_shown: Any, ways: Any, _pixels: Any, label: int, *, strength: float) -> float:
        seen.append((len(ways), label))
        return strength / 10 if isinstance(ways[0], study.Stamp) else 0.5

    monkeypatch.setattr(study, "success", success)
    trigger = study.Stamp(form=None, size=1.0, usual=2.0)
    search: Any = type("Search", (), {"second": [trigger, object()], "judged_on": None, "label": 4})
    assert study.seen(None, search) == {"triggers": [[one / 10] for one in study.STRENGTHS], "channels": [0.5]}
    assert set(seen) == {(1, 4)}
