"""What is in a training set that an attack has poisoned: the trigger, and what each attack puts beside it."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from prepared_attacks import NAMES, Brightness, arm, data_of
from torch import Tensor

from unbackdoor.api.images import mixture
from unbackdoor.attacks import ATTACKS, TrainingControl
from unbackdoor.attacks.bpp import BPP
from unbackdoor.attacks.input_aware import InputAware
from unbackdoor.attacks.label_consistent import LabelConsistent
from unbackdoor.attacks.wanet import WaNet
from unbackdoor.errors import SettingError

CONTROL = [name for name in NAMES if issubclass(ATTACKS[name], TrainingControl)]


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("name", "cover"), [("wanet", 20), ("inputaware", 10), ("bpp", 10)])
def test_cover_images_stand_beside_the_triggered_images(name: str, cover: int) -> None:
    """Of 100 images ten get the trigger; WaNet warps 20 others with noise, Input-Aware crosses 10, BPP a tenth."""
    data = data_of(32, 100)
    attack = arm(name, target=3)
    before = data.images.clone()
    poisoned = attack.poison(data.images, data.labels, rate=0.1, num_classes=10, generator=_generator())
    assert torch.equal(data.images, before)
    assert (poisoned.images.dtype, poisoned.images.shape) == (torch.uint8, before.shape)
    assert int(poisoned.mask.sum()) == 10
    assert (poisoned.labels[poisoned.mask] == 3).all()
    assert torch.equal(poisoned.labels[~poisoned.mask], data.labels[~poisoned.mask])
    stamped = attack.stamp(before[poisoned.mask])
    assert int((poisoned.images[poisoned.mask].int() - stamped.int()).abs().max()) <= 1
    changed = (poisoned.images != before).flatten(1).any(1)
    assert int((changed & ~poisoned.mask).sum()) == cover
    again = attack.poison(data.images, data.labels, rate=0.1, num_classes=10, generator=_generator())
    assert torch.equal(again.images, poisoned.images)
    other = attack.poison(data.images, data.labels, rate=0.1, num_classes=10, generator=_generator(1))
    assert not torch.equal(other.mask, poisoned.mask)


def test_bpp_negatives_by_hand() -> None:
    # Two greys, two colours: the error of 20 is -20, of 140 it is 115. Whoever is no negative of its own kind shows it.
    values = torch.tensor([20, 140] * 20, dtype=torch.uint8)
    images = values.view(40, 1, 1, 1).expand(40, 3, 2, 2).contiguous()
    attack = BPP(colours=2, negative_rate=0.5, target=7)
    poisoned = attack.poison(images, torch.arange(40) % 5, rate=0.25, num_classes=10, generator=_generator())
    shown = poisoned.images[:, 0, 0, 0]
    for before, after, hit in zip(values.tolist(), shown.tolist(), poisoned.mask.tolist(), strict=True):
        if hit:
            assert after == {20: 0, 140: 255}[before]
        else:
            assert after in {before, before - 20, min(before + 115, 255)}
    negatives = (shown != values) & ~poisoned.mask
    assert int(negatives.sum()) == 20


def test_wanet_noise_images_are_warped_by_field_and_jitter() -> None:
    """With no field at all the attacked images stay, and noise images move by less than half a pixel."""
    images = (torch.arange(32, dtype=torch.uint8) * 8).expand(20, 3, 32, 32).contiguous()
    attack = WaNet().with_tensors(field=torch.zeros(32, 32, 2))
    poisoned = attack.poison(images, torch.arange(20) % 5, rate=0.2, num_classes=5, generator=_generator())
    moved = (poisoned.images.int() - images.int()).abs().amax((1, 2, 3))
    assert (moved[poisoned.mask] == 0).all()
    assert int((moved > 0).sum()) == 8
    assert int(moved.max()) <= 4


def test_a_cross_image_carries_the_trigger_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """x1 + (G(x2) - x1) m(x2) with G the picture upside down and m a half: (x1 + x2 upside down) / 2."""

    def network(_attack: InputAware, prefix: str, _build: object, _like: Tensor) -> Callable[[Tensor], Tensor]:
        return (lambda x: x.flip(2)) if prefix == "pattern." else (lambda x: torch.full_like(x[:, :1], 0.5))

    monkeypatch.setattr(InputAware, "network", network)
    data = data_of(32, 2)
    attack = InputAware(target=3).with_tensors(mean=torch.zeros(3), std=torch.ones(3))
    poisoned = attack.poison(data.images, data.labels, rate=0.5, num_classes=10, generator=_generator())
    hit, cross = int(poisoned.mask.nonzero()), int((~poisoned.mask).nonzero())
    x = data.images.float()
    for place in (hit, cross):  # both carry what comes of the attacked image
        expected = (x[place] + x[hit].flip(1)) / 2
        assert float((poisoned.images[place].float() - expected).abs().max()) <= 0.51
    assert poisoned.labels.tolist() == [3 if place == hit else int(data.labels[place]) for place in range(2)]
    most = attack.poison(data.images, data.labels, rate=1.0, num_classes=10, generator=_generator())
    assert int(most.mask.sum()) == 1  # there is a cross image for each


@pytest.mark.parametrize("name", CONTROL)
def test_truncated_sets_are_8_bit_too(name: str) -> None:
    data = data_of(32, 20)
    attack = replace(arm(name), rounding="truncate")
    poisoned = attack.poison(data.images, data.labels, rate=0.25, num_classes=10, generator=_generator())
    assert poisoned.images.dtype == torch.uint8
    stamped = attack.stamp(data.images[poisoned.mask])
    assert int((poisoned.images[poisoned.mask].int() - stamped.int()).abs().max()) <= 1


@pytest.mark.parametrize("name", [name for name in NAMES if name != "lc"])
def test_a_defenders_mixture_is_the_attacks_own_training_set(name: str) -> None:
    data, attack = data_of(32, 50), arm(name)
    mixed, count = mixture(data, attack, 0.1, seed=4)
    poisoned = attack.poison(data.images, data.labels, rate=0.1, num_classes=10, generator=_generator(4))
    assert count == int(poisoned.mask.sum()) == 5
    assert torch.equal(mixed.images, poisoned.images)
    assert torch.equal(mixed.labels, poisoned.labels)
    assert mixed.spec is data.spec


def test_label_consistent_images_are_perturbed_or_refused() -> None:
    data = data_of(8, 50)
    with pytest.raises(SettingError, match=r"lc: .*which attack\.json does not hold\. .*as a data set") as caught:
        mixture(data, LabelConsistent(), 0.1, seed=0)
    assert len(str(caught.value).splitlines()) == 1
    prepared = LabelConsistent(steps=10).prepare(data, seed=0, classifier=Brightness())
    mixed, count = mixture(data, prepared, 0.1, seed=0)
    assert count == 5
    inside = (mixed.images.int() - data.images.int())[..., 3:5, 3:5]
    assert 0 < int(inside.abs().max()) <= 8
    assert torch.equal(mixed.labels, data.labels)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_outside_0_to_1(share: float) -> None:
    with pytest.raises(SettingError, match="poisoned: expected a share between 0 and 1"):
        mixture(data_of(), arm("badnet"), share, seed=0)


@pytest.mark.parametrize("name", ["badnet", "wanet"])
def test_a_share_that_reaches_no_image(name: str) -> None:
    with pytest.raises(SettingError, match=r"poison rate 0\.01 of 20 images poisons none"):
        mixture(data_of(), arm(name), 0.01, seed=0)
