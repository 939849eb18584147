"""NAD's maps, attention and loss, against loops."""

import math

import pytest
import torch
from torch import Tensor, nn

from unbackdoor.defences.data_based.nad import NAD, attention, attention_loss
from unbackdoor.errors import MethodError
from unbackdoor.graph.feature_maps import last_maps, recorded
from unbackdoor.models import parse_arch


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_attention_and_its_loss_by_loops(power: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 5, 2, 4, generator=generator)

    def by_hand(maps: Tensor) -> list[list[list[float]]]:
        result = []
        for image in maps.tolist():
            rows = [[sum(abs(c[h][w]) ** power for c in image) for w in range(4)] for h in range(2)]
            length = math.sqrt(sum(v * v for row in rows for v in row))
            result.append([[v / (length + 1e-6) for v in row] for row in rows])
        return result

    a, b = by_hand(student), by_hand(teacher)
    assert torch.allclose(attention(student, power), torch.tensor(a), atol=1e-6)
    squares = [(a[n][h][w] - b[n][h][w]) ** 2 for n in range(3) for h in range(2) for w in range(4)]
    assert float(attention_loss(student, teacher, power)) == pytest.approx(sum(squares) / len(squares), rel=1e-4)


def test_a_pooled_map_says_nothing() -> None:
    """Why the last map before pooling is used: the attention of a single pixel is the constant 1."""
    assert torch.allclose(attention(torch.randn(4, 8, 1, 1), 2.0), torch.ones(4, 1, 1), atol=1e-4)


@pytest.mark.parametrize(
    ("arch", "paths", "sizes"),
    [
        ("resnet18:width=4", ("layer2", "layer3", "layer4"), (16, 8, 4)),
        ("preactresnet18:width=4", None, (16, 8, 4)),
        ("vgg19_bn:width=4", None, (8, 4, 2)),
        ("mobilenetv2:width=4", None, (16, 8, 4)),
        ("densenet121:growth=4", None, (16, 8, 4)),
        ("torchvision:resnet18", ("layer1", "layer2", "layer3"), (8, 4, 2)),
        ("timm:resnet18", ("layer1", "layer2", "layer3"), (8, 4, 2)),
    ],
)
def test_the_last_maps_of_three_resolutions(arch: str, paths: tuple[str, ...] | None, sizes: tuple[int, ...]) -> None:
    model = parse_arch(arch).build()
    places = last_maps(model, torch.randn(2, 3, 32, 32), count=3)
    assert tuple(place.size[0] for place in places) == sizes
    if paths is not None:
        assert tuple(place.path for place in places) == paths
    with recorded(model, places) as maps:
        model(torch.randn(3, 3, 32, 32))
    assert [tuple(m.shape[2:]) for m in maps.tensors] == [(s, s) for s in sizes]
    assert all(m.requires_grad and len(m) == 3 for m in maps.tensors)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


class Twice(nn.Module):
    """Calls one convolution twice, at two resolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.pool(self.conv(x)))
        return x.mean((2, 3))


def test_a_module_that_is_called_twice_has_two_places() -> None:
    model = Twice()
    places = last_maps(model, torch.randn(2, 3, 8, 8), count=3)
    assert [(place.path, place.call, place.size) for place in places] == [("conv", 0, (8, 8)), ("conv", 1, (4, 4))]
    x = torch.randn(2, 3, 8, 8)
    with recorded(model, places) as maps:
        for _ in range(2):  # each pass counts its calls anew
            model(x)
    first = model.conv(x)
    assert torch.equal(maps.tensors[0], first)
    assert torch.equal(maps.tensors[1], model.conv(model.pool(first)))


class Attention(nn.Module):
    """Its only other four-dimensional results are attention weights, in windows and heads."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.softmax = nn.Softmax(dim=-1)
        self.mark = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        weights = self.softmax((tokens @ tokens.transpose(1, 2))[:, None])
        windows = self.mark(weights.repeat(2, 1, 1, 1))[: len(x), 0]
        return (windows @ tokens).mean(1)


def test_attention_weights_are_no_maps() -> None:
    assert [place.path for place in last_maps(Attention(), torch.randn(2, 3, 32, 32), count=3)] == ["patches"]
    x, y = torch.randn(12, 3, 32, 32), torch.arange(12) % 8
    with pytest.raises(MethodError, match="of several resolutions, and this network has 1"):
        NAD()(Attention(), x, y, generator=torch.Generator())


def test_hooks_go_even_after_an_exception() -> None:
    model = Twice()
    with pytest.raises(RuntimeError):
        last_maps(model, torch.randn(2, 4, 8, 8), count=3)
    assert all(not m._forward_hooks for m in model.modules())
    assert last_maps(nn.Linear(3, 2), torch.randn(2, 3), count=3) == ()
