"""How many images are poisoned, which, and how."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unbackdoor.attacks.badnets import BadNets
from unbackdoor.errors import SettingError


def _set(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((n, 3, 4, 4), 7, dtype=torch.uint8), torch.arange(n) % 10


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(deadline=None, max_examples=50)
@given(n=st.integers(1, 300), rate=st.floats(0, 1))
def test_round_of_rate_times_n_images_are_poisoned(n: int, rate: float) -> None:
    images, labels = _set(n)
    attack = BadNets(size=2, target=3)
    if rate > 0 and round(rate * n) == 0:
        with pytest.raises(SettingError, match="poisons none"):
            attack.poison(images, labels, rate=rate, num_classes=10, generator=_generator())
        return
    poisoned = attack.poison(images, labels, rate=rate, num_classes=10, generator=_generator())
    assert int(poisoned.mask.sum()) == round(rate * n)
    assert poisoned.rate == pytest.approx(round(rate * n) / n)
    assert (poisoned.labels[poisoned.mask] == 3).all()
    assert (poisoned.images[poisoned.mask][..., -2:, -2:] == 255).all()
    assert torch.equal(poisoned.labels[~poisoned.mask], labels[~poisoned.mask])
    assert (poisoned.images[~poisoned.mask] == 7).all()


@pytest.mark.parametrize(("n", "rate", "count"), [(50_000, 0.1, 5000), (1000, 0.0015, 2), (10, 1.0, 10), (10, 0.0, 0)])
def test_counts_by_hand(n: int, rate: float, count: int) -> None:
    images, labels = torch.zeros(n, 3, 1, 1, dtype=torch.uint8), torch.zeros(n, dtype=torch.long)
    poisoned = BadNets(size=1).poison(images, labels, rate=rate, num_classes=10, generator=_generator())
    assert int(poisoned.mask.sum()) == count


def test_the_same_generator_draws_the_same_images() -> None:
    images, labels = _set(100)
    masks = [
        BadNets().poison(images, labels, rate=0.2, num_classes=10, generator=_generator(s)).mask for s in (1, 1, 2)
    ]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_the_global_generator_is_not_touched() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    BadNets().poison(*_set(100), rate=0.2, num_classes=10, generator=_generator())
    assert torch.equal(before, torch.random.get_rng_state())


def test_images_of_the_target_class_may_be_drawn() -> None:
    images, _ = _set(50)
    all_target = torch.zeros(50, dtype=torch.long)
    poisoned = BadNets(target=0).poison(images, all_target, rate=0.5, num_classes=10, generator=_generator())
    assert int(poisoned.mask.sum()) == 25


def test_the_input_is_left_as_it_is() -> None:
    images, labels = _set(20)
    BadNets(target=3).poison(images, labels, rate=1.0, num_classes=10, generator=_generator())
    assert (images == 7).all()
    assert labels.tolist() == [i % 10 for i in range(20)]


@pytest.mark.parametrize("rate", [-0.1, 1.01, float("nan"), float("inf")])
def test_a_rate_outside_0_to_1_is_refused(rate: float) -> None:
    with pytest.raises(SettingError, match="expected a share between 0 and 1"):
        BadNets().poison(*_set(20), rate=rate, num_classes=10, generator=_generator())


def test_all_to_all_asks_for_the_class_after_each_images_own() -> None:
    images, labels = _set(20)
    attack = BadNets(mapping="all-to-all", target=3)
    poisoned = attack.poison(images, labels, rate=1.0, num_classes=10, generator=_generator())
    assert poisoned.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0] * 2
