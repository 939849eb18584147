"""PGD against a classifier that can be derived by hand, and what is kept of that classifier."""

import pytest
import torch
import torch.nn.functional as F
from prepared_attacks import Brightness, data_of
from torch import Tensor, nn

from unbackdoor.attacks.label_consistent import LabelConsistent, checkerboard, log_odds_against, perturb
from unbackdoor.errors import SettingError

CORNERS = [(0, 0), (0, 7), (7, 0), (7, 7)]


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_four_corners_of_black_and_white() -> None:
    images = torch.full((2, 3, 8, 8), 7, dtype=torch.uint8)
    w, b, o = 255, 0, 7
    expected = [
        [w, b, w, o, o, w, b, w],
        [b, w, b, o, o, b, w, b],
        [w, b, w, o, o, w, b, w],
        [o] * 8,
        [o] * 8,
        [w, b, w, o, o, w, b, w],
        [b, w, b, o, o, b, w, b],
        [w, b, w, o, o, w, b, w],
    ]
    stamped = LabelConsistent().stamp(images)
    assert stamped.tolist() == [[expected] * 3] * 2
    assert torch.equal(stamped.flip(-1), LabelConsistent().stamp(images.flip(-1)))  # its own mirror image
    assert (images == 7).all()
    assert torch.equal(checkerboard(), checkerboard().flip(0))


# The logits are (mean of red, 0, 0, ...): the loss of class 0 rises as red falls, green and blue do nothing, and only
# the gradient's sign counts, however sure the classifier is (of class 0 up to 1 - exp(-98) here). So red falls by a
# step each time, down to eps, and never below black.
@pytest.mark.parametrize(
    ("steps", "red", "result"), [(0, 100, 100), (2, 100, 97), (5, 100, 92), (100, 100, 92), (100, 5, 0)]
)
def test_pgd_by_hand(steps: int, red: int, result: int) -> None:
    images = torch.full((2, 3, 8, 8), red, dtype=torch.uint8)
    perturbed = perturb(images, 0, logits=Brightness(), eps=8, step_size=1.5, steps=steps)
    assert perturbed[:, 0].unique().tolist() == [result]
    assert torch.equal(perturbed[:, 1:], images[:, 1:])
    assert perturbed.dtype == torch.uint8


def test_the_direction_is_that_of_the_cross_entropy() -> None:
    logits = torch.randn(50, 7, generator=_generator(), dtype=torch.float64).requires_grad_()
    for label in (0, 3, 6):
        loss = F.cross_entropy(logits, torch.full((50,), label), reduction="sum")
        (expected,) = torch.autograd.grad(loss, logits)
        odds = log_odds_against(logits, label)
        (got,) = torch.autograd.grad(odds.sum(), logits)
        assert torch.allclose(got * odds.sigmoid()[:, None], expected)  # one positive factor an image
        assert float(loss.detach()) == pytest.approx(float(F.softplus(odds.detach()).sum()))


def test_away_from_another_class_the_same_classifier_gets_brighter() -> None:
    images = torch.full((1, 3, 8, 8), 250, dtype=torch.uint8)
    perturbed = perturb(images, 4, logits=Brightness(), eps=8, step_size=1.5, steps=100)
    assert perturbed[0, 0].unique().tolist() == [255]  # 258 is no pixel
    assert perturbed[0, 1].unique().tolist() == [250]


def test_gradients_are_taken_where_none_are_wanted() -> None:
    images = torch.full((1, 3, 8, 8), 100, dtype=torch.uint8)
    with torch.no_grad():
        perturbed = perturb(images, 0, logits=Brightness(), eps=8, step_size=1.5, steps=2)
    assert perturbed[0, 0].unique().tolist() == [97]


def test_images_of_the_target_class_alone_are_perturbed_and_keep_their_label() -> None:
    data = data_of(8, 40)
    attack = LabelConsistent(target=3, steps=10).prepare(data, seed=0, classifier=Brightness())
    poisoned = attack.poison(data.images, data.labels, rate=0.5, num_classes=10, generator=_generator())
    assert data.labels[poisoned.mask].tolist() == [3] * 4  # all there are
    assert poisoned.note == "lc: only 4 of 40 training images have class 3; the rate is 0.1000 instead of 0.5"
    assert torch.equal(poisoned.labels, data.labels)
    assert torch.equal(poisoned.images[~poisoned.mask], data.images[~poisoned.mask])
    inside = (slice(None), slice(None), slice(3, 5), slice(3, 5))
    change = (poisoned.images[poisoned.mask].int() - data.images[poisoned.mask].int())[inside]
    assert 0 < int(change.abs().max()) <= 8
    assert (change[:, 1:] == 0).all()
    for row, column in CORNERS:
        assert (poisoned.images[poisoned.mask][..., row, column] == 255).all()


def test_test_images_get_the_corners_only() -> None:
    data = data_of(8)
    prepared = LabelConsistent().prepare(data, seed=0, classifier=Brightness())
    assert torch.equal(prepared.stamp(data.images), LabelConsistent().stamp(data.images))
    assert torch.equal(prepared.stamp(data.images)[..., 3:5, 3:5], data.images[..., 3:5, 3:5])


class Moody(Brightness):
    """Another class in train mode; has a state to lose."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        return super().forward(self.norm(x))


def test_the_classifier_is_used_as_it_predicts_and_left_as_it_is() -> None:
    data, classifier = data_of(8), Moody().train()
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    prepared = LabelConsistent(steps=3).prepare(data, seed=0, classifier=classifier)
    prepared.poison(data.images, data.labels, rate=0.1, num_classes=10, generator=_generator())
    assert classifier.training
    assert classifier.norm.training
    assert all(parameter.grad is None for parameter in classifier.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.state_dict().items())
    assert prepared.tensors == {}
    assert "surrogate" not in repr(prepared)
    assert prepared == LabelConsistent(steps=3)


def test_each_step_is_told() -> None:
    told: list[tuple[int, int]] = []
    data = data_of(8, 40)
    attack = LabelConsistent(steps=5)
    prepared = attack.prepare(data, seed=0, classifier=Brightness(), progress=lambda *steps: told.append(steps))
    assert told == []  # nothing is perturbed before it is known which images
    prepared.poison(data.images, data.labels, rate=0.1, num_classes=10, generator=_generator())
    assert told == [(k, 5) for k in range(1, 6)]


def test_without_a_classifier() -> None:
    data = data_of(8)
    with pytest.raises(SettingError, match="lc needs a clean classifier"):
        LabelConsistent().prepare(data, seed=0)
    with pytest.raises(SettingError, match="perturbed with a clean classifier"):
        LabelConsistent().poison(data.images, data.labels, rate=0.1, num_classes=10, generator=_generator())


def test_a_classifier_of_another_data_set() -> None:
    with pytest.raises(SettingError, match="expected a clean classifier of 10 classes, got 43"):
        LabelConsistent().prepare(data_of(8), seed=0, classifier=Brightness(43))


@pytest.mark.parametrize(("size", "fits"), [(5, False), (6, True)])
def test_corners_do_not_overlap(size: int, fits: bool) -> None:
    if fits:
        LabelConsistent().check(num_classes=10, size=size)
    else:
        with pytest.raises(SettingError, match="four 3x3 corners do not fit images of 5x5 pixels"):
            LabelConsistent().check(num_classes=10, size=size)


@pytest.mark.parametrize("setting", [{"eps": -1.0}, {"eps": 256.0}, {"step_size": float("nan")}, {"steps": -1}])
def test_settings_out_of_range(setting: dict) -> None:
    with pytest.raises(SettingError, match=f"lc {next(iter(setting))}"):
        LabelConsistent(**setting)
