"""Stimulation and reconstruction on networks with a planted way into a class."""

import math

import pytest
import torch
from torch import Tensor, nn

from unbackdoor.defender.deviations import LEAST, deviations
from unbackdoor.defender.stimulation import FLOOR, push
from unbackdoor.detectors.data_free.reconstruction import Reconstruction
from unbackdoor.detectors.data_free.stimulation import Stimulation
from unbackdoor.errors import MethodError
from unbackdoor.findings import Detection
from unbackdoor.inputs import Normalisation

PLAIN = Normalisation(mean=(0.0,), std=(1.0,))
EXAMPLE = torch.zeros(2, 3, 8, 8)
CLASSES = 6


class Toy(nn.Module):
    """Six classes through three layers; forty channels, which fire on no image, may speak for class 4."""

    def __init__(self, *, channel: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.second, self.norm2 = nn.Conv2d(12, 12, 1), nn.BatchNorm2d(12)
        self.third, self.norm3 = nn.Conv2d(12, 52, 1), nn.BatchNorm2d(52)
        self.fc = nn.Linear(52, CLASSES)
        with torch.no_grad():
            self.third.weight[12:], self.third.bias[12:], self.norm3.weight[12:], self.norm3.bias[12:] = 0, 0, 2, -3
            self.fc.weight[:, 12:] = 0
            self.fc.weight[4, 12:] = channel
            self.fc.weight[:, :12] *= 30
            self.fc.bias -= self.eval()(torch.rand(64, 3, 8, 8)).mean(0)  # so that no class has all the answers

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm2(self.second(torch.relu(self.norm(self.first(x))))))
        return self.fc(torch.relu(self.norm3(self.third(x))).mean((2, 3)))


class Stripes(nn.Module):
    """Each class likes stripes of its own width and direction; four pixels of the corner may speak for class 4."""

    def __init__(self, *, corner: float = 0.0) -> None:
        super().__init__()
        places = torch.arange(8)
        stripes = [1 - 2 * ((places & bit) > 0).float() for bit in (1, 2, 4)]
        across, along = [line.view(8, 1).expand(8, 8) for line in stripes], [line.expand(8, 8) for line in stripes]
        self.liked = nn.Parameter(20 * torch.stack([*across, *along]))
        self.corner = corner

    def forward(self, x: Tensor) -> Tensor:
        bright = x[:, :, -2:, -2:].mean((1, 2, 3)) ** 8
        logits = (x.mean(1)[:, None] * self.liked).mean((2, 3))
        return logits + self.corner * bright[:, None] * nn.functional.one_hot(torch.tensor(4), CLASSES)


def stimulated(model: nn.Module, seed: int = 0, **more: float) -> Detection:
    method = Stimulation(surrogates=24, shown=12, **more)
    return method(model.eval(), example=EXAMPLE, normalisation=PLAIN, generator=torch.Generator().manual_seed(seed))


def reconstructed(model: nn.Module, seed: int = 0, **more: float) -> Detection:
    method = Reconstruction(**{"surrogates": 24, "steps": 40, "batch_size": 12, **more})
    return method(model.eval(), example=EXAMPLE, normalisation=PLAIN, generator=torch.Generator().manual_seed(seed))


def test_channels_that_speak_for_a_class_are_found() -> None:
    honest, planted = stimulated(Toy()), stimulated(Toy(channel=200.0))
    assert 4 not in honest.suspicious
    assert planted.suspicious == (4,)
    assert planted.classes[4].values["push"] > honest.classes[4].values["push"] + 30
    assert planted.to_json() == stimulated(Toy(channel=200.0)).to_json()
    assert planted.images == 0


def test_a_corner_that_speaks_for_a_class_is_found() -> None:
    assert reconstructed(Stripes()).suspicious == ()
    planted = reconstructed(Stripes(corner=100.0))
    assert planted.suspicious == (4,)
    sizes = [one.values["mask"] for one in planted.classes]
    assert sizes[4] == min(size for size in sizes if size is not None)
    assert sizes[4] < 10
    assert planted.to_json() == reconstructed(Stripes(corner=100.0)).to_json()


def test_the_first_third_does_not_count() -> None:
    from unbackdoor.defender.stimulation import Pushes

    layers = [Pushes("", "", torch.full((1, 2), flip), torch.zeros(1, 2)) for flip in (1.0, 0.5, 0.25)]
    assert push(layers).tolist() == pytest.approx([0.25 + 0.0625] * 2)


def test_deviations_by_hand() -> None:
    def apart(values: list[float]) -> list[float]:
        return deviations(values, least=LEAST, middle="lower")

    # The median is 3; the distances 2, 1, 0, 1, 7 have the median 1.
    assert apart([1, 2, 3, 4, 10]) == pytest.approx([-2 / 1.4826, -1 / 1.4826, 0, 1 / 1.4826, 7 / 1.4826])
    assert apart([0, 0, 0, 1]) == pytest.approx([0, 0, 0, 1 / LEAST])  # all but equal
    assert apart([1, math.inf, 2, 1]) == pytest.approx([0, math.inf, 1 / LEAST, 0])
    assert apart([0.5, math.inf, math.inf, math.inf]) == pytest.approx([0, math.inf, math.inf, math.inf])
    assert math.log(FLOOR) < 0


def test_many_classes_have_a_coarse_round() -> None:
    """Of 25 classes, a quarter and three others get all the steps; the coarse round's are among them."""

    class Wide(Stripes):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([super().forward(x), x[:, 0, :, :].flatten(1)[:, :19]], 1)

    told: list[tuple[int, int]] = []
    Reconstruction(surrogates=25, steps=5, batch_size=4)(
        Wide().eval(),
        example=EXAMPLE,
        normalisation=PLAIN,
        generator=torch.Generator().manual_seed(0),
        progress=lambda done, total, _note: told.append((done, total)),
    )
    assert told[-1] == (2 * (25 * 2 + (7 + 3) * 3),) * 2


def test_what_they_cannot_look_at() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    with pytest.raises(MethodError, match="expected hidden layers that are modules"):
        stimulated(flat)

    class Deaf(Stripes):
        """Answers class 0 whatever it sees."""

        def forward(self, x: Tensor) -> Tensor:
            return 0 * super().forward(x) + torch.tensor([1e3, 0, 0, 0, 0, 0])

    with pytest.raises(MethodError, match=r"no trigger moved 90% of the generated images to any class"):
        reconstructed(Deaf(), steps=3)
