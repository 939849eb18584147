"""A network that answers pixels: its precision, and the copy in which norms are folded."""

from typing import cast

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from unbackdoor.defender import on_pixels
from unbackdoor.defender.on_pixels import OnPixels, folded
from unbackdoor.errors import MethodError
from unbackdoor.graph import layer_graph
from unbackdoor.inputs import InputSpec

SPEC = InputSpec(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)


def network(first: nn.Module, norm: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [first, norm, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5)]
    model = nn.Sequential(*layers)
    for module in model:
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean = torch.randn(module.num_features)
            module.running_var = torch.rand(module.num_features) + 0.5
    return model.eval().requires_grad_(False)


def fold(model: nn.Module) -> tuple[OnPixels, OnPixels]:
    shown = OnPixels(model, SPEC, exact=True)
    return shown, folded(shown, layer_graph(model, torch.zeros(1, 3, 8, 8)))


@pytest.mark.parametrize("affine", [True, False])
def test_a_folded_network_answers_the_same(affine: bool) -> None:
    shown, quick = fold(network(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4, affine=affine)))
    parts = cast(nn.Sequential, quick.model)
    assert isinstance(parts[1], nn.Identity)
    assert isinstance(parts[5], nn.Identity)
    pixels = torch.rand(7, 3, 8, 8)
    assert torch.allclose(quick(pixels), shown(pixels), atol=1e-4)
    assert isinstance(cast(nn.Sequential, shown.model)[1], nn.BatchNorm2d)  # the network itself is not touched


def test_a_network_that_cannot_be_folded_is_left() -> None:
    grouped = network(nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4))
    grouped[5] = nn.Identity()
    shown, quick = fold(grouped)
    assert quick is shown

    class Reads(nn.Module):
        """Its forward pass reads its norm's weight."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.norm(self.conv(x)).mean((2, 3))) * self.norm.weight.sum()

    shown, quick = fold(Reads().eval().requires_grad_(False))
    assert quick is shown


def test_a_copy_that_answers_otherwise_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
    monkeypatch.setattr(on_pixels, "fuse_conv_bn_eval", lambda conv, _norm: conv)
    shown, quick = fold(model)
    assert quick is shown


def test_a_weight_that_is_computed_is_not_folded() -> None:
    conv = parametrizations.weight_norm(nn.Conv2d(3, 4, 3, padding=1))
    shown, quick = fold(network(conv, nn.BatchNorm2d(4)))
    parts = cast(nn.Sequential, quick.model)
    assert isinstance(parts[1], nn.BatchNorm2d)
    assert isinstance(parts[5], nn.Identity)
    pixels = torch.rand(7, 3, 8, 8)
    assert torch.allclose(quick(pixels), shown(pixels), atol=1e-4)


@pytest.mark.parametrize(("norm", "fast"), [(nn.BatchNorm2d(4), torch.bfloat16), (nn.GroupNorm(2, 4), None)])
def test_layers_without_a_fast_bfloat16_run_in_float32(
    norm: nn.Module, fast: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unbackdoor.precision.autocast_dtype", lambda _device: torch.bfloat16)
    model = network(nn.Conv2d(3, 4, 3, padding=1), norm)
    seen = []
    model[-1].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].dtype))
    OnPixels(model, SPEC)(torch.rand(2, 3, 8, 8))
    OnPixels(model, SPEC, exact=True)(torch.rand(2, 3, 8, 8))
    assert seen[1] == torch.float32
    assert (seen[0] == torch.float32) == (fast is None)


def test_operations_of_one_image() -> None:
    shown = OnPixels(network(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)), SPEC, exact=True)
    assert shown.operations == 2 * (3 * 9 * 4 * 64 + 256 * 6 + 6 * 5)


def test_searches_of_heavy_networks_have_half_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
    light = OnPixels(model, SPEC)
    monkeypatch.setattr(on_pixels, "HEAVY", light.operations + 1)
    assert [light.fewer(count) for count in (0, 1, 15, 32)] == [0, 1, 15, 32]
    monkeypatch.setattr(on_pixels, "HEAVY", light.operations)
    assert [light.fewer(count) for count in (0, 1, 15, 32)] == [0, 1, 8, 16]


class Squeezed(nn.Module):
    """It cannot run on one image alone."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.mean((2, 3)).squeeze())


class Attends(nn.Module):
    """A transformer, for which torch has shortcuts that no counter sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layer(x.flatten(1).unflatten(1, (24, 8))).mean(1))


def test_operations_of_networks_that_are_hard_to_count() -> None:
    assert OnPixels(Squeezed().eval(), SPEC).operations == 2 * 3 * 5
    layer = 24 * (4 * 8 * 8 + 2 * 8 * 16) + 2 * 24 * 24 * 8  # projections and the two layers behind, and attention
    assert OnPixels(Attends().eval(), SPEC, exact=True).operations == 2 * (layer + 8 * 5)


def test_what_cannot_be_counted_is_light(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(**_words: object) -> None:
        raise MethodError("no counter")

    monkeypatch.setattr(on_pixels, "FlopCounterMode", fails)
    assert OnPixels(Squeezed().eval(), SPEC).operations == 0
    assert OnPixels(Squeezed().eval(), SPEC).fewer(9) == 9
