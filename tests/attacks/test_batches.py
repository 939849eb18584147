"""How many images of a batch a training-controlled attack takes, to the image."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared_attacks import arm, data_of
from torch import Tensor

from unbackdoor.attacks import TrainingControl
from unbackdoor.attacks.training_control import attacked_in_batch, others, whole
from unbackdoor.errors import SettingError


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("rate", "size", "count"),
    [
        (0.1, 128, 12),  # 12.8
        (0.01, 128, 1),  # 1.28
        (0.0, 128, 0),
        (1.0, 128, 128),
        (0.29, 100, 29),  # computed as 28.999999999999996
        (0.01, 100, 1),
    ],
)
def test_the_whole_part_of_rate_times_batch(rate: float, size: int, count: int) -> None:
    assert attacked_in_batch(rate, size, _generator()) == count


def test_below_one_it_is_a_probability() -> None:
    generator = _generator()
    counts = [attacked_in_batch(0.005, 128, generator) for _ in range(2000)]  # 0.64 an image
    assert set(counts) == {0, 1}
    assert sum(counts) / 2000 == pytest.approx(0.64, abs=0.04)


@pytest.mark.parametrize(("number", "result"), [(0.29 * 100, 29), (12.8, 12), (0.0, 0), (0.999, 0)])
def test_whole(number: float, result: int) -> None:
    assert whole(number) == result


@settings(deadline=None, max_examples=50)
@given(size=st.integers(2, 40), seed=st.integers(0, 99), data=st.data())
def test_others_are_never_the_image_itself(size: int, seed: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, size))
    drawn = others(slice(start, stop), size, generator=_generator(seed))
    assert len(drawn) == stop - start
    assert all(
        0 <= other < size and other != own for own, other in zip(range(start, stop), drawn.tolist(), strict=True)
    )


def test_every_other_is_drawn_as_often() -> None:
    drawn = torch.stack([others(slice(1, 2), 4, generator=_generator(seed)) for seed in range(600)])
    counts = drawn.flatten().bincount(minlength=4).tolist()
    assert counts[1] == 0
    assert all(150 < count < 250 for count in (counts[0], *counts[2:]))


def test_a_lone_image_has_no_other() -> None:
    assert others(slice(0, 0), 1, generator=_generator()).tolist() == []
    with pytest.raises(SettingError, match="expected at least 2, so that an image can be mixed with another"):
        others(slice(0, 1), 1, generator=_generator())


def _session(name: str, rate: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A batch of 128 random images of classes 1 to 9, before and after the attack."""
    data = data_of(32, 128)
    labels = 1 + torch.arange(128) % 9
    attack = replace(arm(name), target=0)
    assert isinstance(attack, TrainingControl)
    session = attack.session(rate=rate, spec=data.spec, seed=0, epochs=1, device=torch.device("cpu"))
    images, edited = session.before(data.images, labels, _generator())
    x, edited, _ = session.after(images.float(), edited, _generator())
    return data.images.float(), labels, x.detach(), edited


@pytest.mark.parametrize(
    ("name", "rate", "attacked", "cover"),
    [
        ("wanet", 0.1, 12, 24),  # two noise-mode images for each attacked one
        ("wanet", 0.01, 1, 2),
        ("inputaware", 0.1, 12, 12),  # as many cross images
        ("inputaware", 0.01, 1, 1),
        ("bpp", 0.1, 12, 12),
        ("bpp", 0.01, 1, 12),  # negatives do not follow the rate: a tenth of the batch
    ],
)
def test_a_batch_of_128(name: str, rate: float, attacked: int, cover: int) -> None:
    before, labels, after, edited = _session(name, rate)
    changed = (before != after).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == list(range(attacked + cover))
    assert (edited[:attacked] == 0).all()
    assert torch.equal(edited[attacked:], labels[attacked:])  # cover images keep their labels


@pytest.mark.parametrize("name", ["wanet", "bpp"])
def test_cover_images_stop_at_the_end_of_the_batch(name: str) -> None:
    before, _, after, edited = _session(name, 1.0)
    assert (before != after).flatten(1).any(1).all()
    assert (edited == 0).all()


@pytest.mark.parametrize("name", ["wanet", "bpp", "inputaware"])
def test_all_to_all(name: str) -> None:
    attack = replace(arm(name), mapping="all-to-all")
    assert isinstance(attack, TrainingControl)
    data = data_of(32, 20)
    session = attack.session(rate=0.25, spec=data.spec, seed=0, epochs=1, device=torch.device("cpu"))
    images, labels = session.before(data.images, data.labels, _generator())
    _, labels, _ = session.after(images.float(), labels, _generator())
    assert labels.tolist() == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9, *range(10)]


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_outside_0_to_1(rate: float) -> None:
    attack = arm("bpp")
    assert isinstance(attack, TrainingControl)
    with pytest.raises(SettingError, match="poison rate"):
        attack.session(rate=rate, spec=data_of().spec, seed=0, epochs=1, device=torch.device("cpu"))
