"""The study of what each part of best does: what a variant changes while it runs, and its tables."""

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from unbackdoor.defences.data_free import looking
from unbackdoor.defences.data_free.scene import WATCHED, WaysIn
from unbackdoor.inputs import InputSpec


@pytest.fixture(scope="module")
def study(study_named: Callable[[str], ModuleType]) -> ModuleType:
    return study_named("ablation")


def test_surrogates_of_one_kind(study: ModuleType) -> None:
    """Six of the look are 12 crops, 9 impressions and 9 averages by default; here, all are of the kind."""
    shown: Any = SimpleNamespace(logits=lambda images: images.flatten(1)[:, :2], spec=None)
    seen: Any = SimpleNamespace(made=SimpleNamespace(images=torch.zeros(6, 3, 4, 4)))
    usual = looking.pool_of
    with study.surrogates(lambda _shown, count, _generator: torch.arange(count).float().view(-1, 1, 1, 1)):
        pool = looking.pool_of(shown, seen, torch.Generator())
    assert looking.pool_of is usual
    assert pool.whole == 21
    assert pool.images[:21].flatten().tolist() == list(range(21))
    assert pool.images[21:].flatten().tolist() == [(2 * index + 12) / 2 for index in range(9)]


@pytest.mark.parametrize("variant", ["photographs alone", "dead leaves alone"])
def test_a_variant_makes_images(study: ModuleType, variant: str) -> None:
    spec = InputSpec(shape=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)
    shown: Any = SimpleNamespace(logits=lambda images: images.flatten(1)[:, :2], spec=spec)
    seen: Any = SimpleNamespace(made=SimpleNamespace(images=torch.zeros(2, 3, 8, 8)))
    with study.VARIANTS[variant][2]():
        pool = looking.pool_of(shown, seen, torch.Generator().manual_seed(0))
    assert pool.images.shape == (4 + 3 + 3, 3, 8, 8)
    assert 0 <= float(pool.images.min()) < float(pool.images.max()) <= 1


def test_fewer_ways_are_closed_but_all_tell_what_is_left(study: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WaysIn, "_search", lambda *_words, most=0: (["trigger"], list(range(7))))
    search = object.__new__(WaysIn)
    with study.VARIANTS["4 ways"][2]():
        assert search._search(None, None, None) == (["trigger"], [0, 1, 2, 3])  # type: ignore[arg-type]
        assert search._search(None, None, None, most=WATCHED)[1] == list(range(7))  # type: ignore[arg-type]
    assert len(search._search(None, None, None)[1]) == 7  # type: ignore[arg-type]


def a_row(variant: str, asr: float) -> dict[str, Any]:
    rates = {"acc": 0.8, "asr": 1.0, "recall": 0.7}
    about = {"network": "a", "data": "cifar10", "arch": "vgg", "attack": {"name": "sig", "target": 2}}
    return {**about, "variant": variant, "before": rates, "after": {**rates, "asr": asr}}


def test_tables(study: ModuleType) -> None:
    rows = [a_row(f"best, seed {seed}", seed / 10) for seed in study.SEEDS]
    assert "| best, seed 2 | 80.0/20.0, 70 | 20.0 | 0.0 | 0.0 |" in study.table(rows)
    assert study.spread(rows).splitlines()[-1] == (
        "| vgg, cifar10, sig -> 2 | 0.0, 10.0, 20.0, 30.0, 40.0 | 40.0 | 15.8 |"
    )
    assert len(study.spread(rows[:4]).splitlines()) == 2  # not all seeds were run
