"""Images that show nothing, and what networks answer to them."""

import math

import pytest
import torch
from torch import Tensor, nn

from planted_networks import CLASSES, EXAMPLE, PLAIN, Deaf, Stripes
from unbackdoor.defender.leaves import COUNT, Leaves, leaves
from unbackdoor.defender.on_pixels import OnPixels
from unbackdoor.detectors.data_free.leaves import DeadLeaves
from unbackdoor.errors import MethodError
from unbackdoor.findings import Detection
from unbackdoor.inputs import InputSpec

SPEC = InputSpec(shape=(3, 8, 8), mean=(0.0,), std=(1.0,))


class Edges(Stripes):
    """Class 4 for every image with edges, as any trigger over the whole image has them."""

    def forward(self, x: Tensor) -> Tensor:
        edges = x.diff(dim=3).abs().mean((1, 2, 3))
        return super().forward(x) + 1e3 * edges[:, None] * nn.functional.one_hot(torch.tensor(4), CLASSES)


def found(model: nn.Module, **settings: float) -> Detection:
    method = DeadLeaves(**settings)
    return method(model.eval(), example=EXAMPLE, normalisation=PLAIN, generator=torch.Generator().manual_seed(0))


def test_shares_and_leads_by_hand() -> None:
    some = Leaves(images=torch.arange(10.0).view(10, 1, 1, 1), answers=torch.tensor([2] * 7 + [0] * 3), classes=4)
    assert some.shares == pytest.approx((0.3, 0, 0.7, 0))
    assert some.leads == pytest.approx(
        (math.log2(0.32 / 0.72), math.log2(0.02 / 0.72), math.log2(0.72 / 0.32), math.log2(0.02 / 0.72))
    )
    assert some.of(0).flatten().tolist() == [7, 8, 9]
    assert some.of(1).shape == (0, 1, 1, 1)


def test_what_others_draw_does_not_depend_on_it() -> None:
    shown = OnPixels(Stripes().eval(), SPEC)
    rng = torch.Generator().manual_seed(3)
    first = leaves(shown, rng)
    assert torch.equal(torch.rand(5, generator=rng), torch.rand(5, generator=torch.Generator().manual_seed(3)))
    assert torch.equal(leaves(shown, rng).images, first.images)
    assert not torch.equal(leaves(shown, torch.Generator().manual_seed(4)).images, first.images)
    assert len(first.images) == len(first.answers) == COUNT
    assert sum(first.shares) == pytest.approx(1)


def test_a_class_that_is_answered_to_images_that_show_nothing() -> None:
    honest, planted = found(Stripes()), found(Edges())
    assert honest.suspicious == ()
    assert planted.suspicious == (4,)
    assert planted.classes[4].values["share"] > 0.9
    assert found(Edges(), score=10).suspicious == ()
    assert planted.images == 0
    assert planted.to_json() == found(Edges()).to_json()


def test_a_network_of_one_answer_stands_out_and_one_of_none_is_an_error() -> None:
    assert found(Deaf()).suspicious == (0,)
    with pytest.raises(MethodError, match="finite logits"):
        found(Edges().apply(lambda module: module.liked.data.fill_(math.nan)))
