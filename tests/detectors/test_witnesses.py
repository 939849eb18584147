"""Stimulation and reconstruction on networks with a planted way into a class."""

import math

import pytest
import torch
from torch import Tensor, nn

from planted_networks import EXAMPLE, PLAIN, Deaf, Stripes, Toy
from unbackdoor.defender.deviations import LEAST, deviations
from unbackdoor.defender.stimulation import FLOOR, push
from unbackdoor.detectors.data_free.reconstruction import Reconstruction
from unbackdoor.detectors.data_free.stimulation import Stimulation
from unbackdoor.errors import MethodError
from unbackdoor.findings import Detection


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


def test_a_push_by_hand() -> None:
    from unbackdoor.defender.stimulation import Pushes

    layers = [Pushes("", "", torch.tensor([[flip, 0.0]]), torch.zeros(1, 2)) for flip in (1.0, 0.5, 0.25)]
    assert push(layers).tolist() == pytest.approx([1.3125, 0])


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

    with pytest.raises(MethodError, match=r"no trigger moved 90% of the generated images to any class"):
        reconstructed(Deaf(), steps=3)
