"""What images a network takes: read back from its first norm on networks whose normalisation is known."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from unbackdoor.api import load_model
from unbackdoor.data import DATASETS
from unbackdoor.defender.case import Case
from unbackdoor.defender.input_spec import _CIFAR10, _first_norm, input_spec, read_back
from unbackdoor.defender.surrogates import dead_leaves, random_spectra
from unbackdoor.errors import MethodError, SettingError
from unbackdoor.inputs import InputSpec, Normalisation
from unbackdoor.models import parse_arch

ZOO = sorted((Path(__file__).parents[2] / "zoo").glob("*/record.json"))
EXAMPLE = torch.zeros(2, 3, 32, 32)
KNOWN = {
    "none": Normalisation(mean=(0.0,), std=(1.0,)),
    "half": Normalisation(mean=(0.5,), std=(0.5,)),
    "cifar10": _CIFAR10,
    "255": Normalisation(mean=(0.0,), std=(1 / 255,)),
}


@functools.cache
def pixels(shape: tuple[int, int, int]) -> Tensor:
    generator, spec = torch.Generator().manual_seed(0), KNOWN["none"].spec(shape)
    return torch.cat([family(16, spec, generator) for family in (dead_leaves, random_spectra)])


def network(*stem: nn.Module, shown: Tensor | None = None) -> nn.Module:
    """A classifier with this stem, whose running statistics are those of the given inputs."""
    model = nn.Sequential(*stem, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(3))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model(EXAMPLE if shown is None else shown)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and shown is not None:
                module.reset_running_stats()
        if shown is not None:
            model(shown)
    return model.eval()


def stem(norm: type[nn.Module] = nn.BatchNorm2d, channels: int = 3) -> tuple[nn.Module, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Conv2d(channels, 24, 3, padding=1), norm(24)


def shown(known: Normalisation, shape: tuple[int, int, int] = (3, 32, 32)) -> Tensor:
    return known.spec(shape).normalise(pixels(shape))


def test_the_constants_are_those_of_the_data_set() -> None:
    assert (DATASETS["cifar10"].mean, DATASETS["cifar10"].std) == (_CIFAR10.mean, _CIFAR10.std)


@pytest.mark.parametrize("record", ZOO, ids=lambda path: path.parent.name)
def test_trained_networks_tell_how_their_images_were_normalised(record: Path) -> None:
    """CIFAR-10 by its mean and deviation, GTSRB by nothing. The estimate alone is coarser: the pixels' mean is off by
    up to .25, because traffic signs are darker than photographs and cropping adds black borders."""
    truth = DATASETS[json.loads(record.read_text())["data"]["name"]]
    model = load_model(record.with_name("model.safetensors"))
    found = input_spec(Case(network=model, example=EXAMPLE), model)
    assert found.spec == InputSpec(shape=(3, 32, 32), mean=truth.mean, std=truth.std)
    assert any(first in found.note for first in ("from bn1", "from features.0.1"))
    seen = _first_norm(model, (3, 32, 32))
    assert seen is not None
    std = 0.25 / seen.std
    assert (std / torch.tensor(truth.std)).tolist() == pytest.approx([1.0] * 3, abs=0.25)
    assert (0.46 - seen.mean * std).tolist() == pytest.approx(list(truth.mean), abs=0.25)


@pytest.mark.parametrize("name", KNOWN)
def test_well_known_normalisations_are_recognised(name: str) -> None:
    model = network(*stem(), shown=shown(KNOWN[name]))
    found = input_spec(Case(network=model, example=EXAMPLE), model)
    assert found.spec == KNOWN[name].spec((3, 32, 32))
    assert "near the estimate from 1" in found.normalisation_from


def test_another_normalisation_is_estimated_and_this_is_said() -> None:
    """Mean taken away, deviation left: the deviation of photographs stays, and their mean."""
    model = network(*stem(), shown=shown(Normalisation(mean=(0.48,), std=(1.0,))))
    found = input_spec(Case(network=model, example=EXAMPLE), model)
    assert found.normalisation_from == "estimated from 1"
    assert found.spec.mean == pytest.approx([0.48] * 3, abs=0.1)
    assert found.spec.std == pytest.approx([1.0] * 3, abs=0.35)


def test_means_and_deviation_by_hand() -> None:
    """A 1x1 convolution of independent filters: m = A^-1 mu; and of one colour each, var = s^2 |w|^2."""
    layer = nn.Conv2d(3, 3, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[2.0, 0, 0], [0, 1, 0], [0, 0, -1]]).view(3, 3, 1, 1))
        layer.bias.fill_(0.5)
    mean, std = read_back(
        layer, torch.tensor([0.9, 0.7, 0.3]).double(), torch.tensor([1.0, 0.25, 0.25]).double(), (8, 8)
    )
    assert mean.tolist() == pytest.approx([0.2, 0.2, 0.2], abs=1e-6)
    assert std.tolist() == pytest.approx([0.5] * 3)


@settings(max_examples=20, derandomize=True)
@given(
    kernel=st.sampled_from([1, 3, 5, 7]),
    stride=st.integers(1, 2),
    padding=st.sampled_from([0, 1, 3, "same"]),
    mode=st.sampled_from(["zeros", "reflect"]),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    channels=st.sampled_from([1, 3, 4]),
    mean=st.floats(0, 1),
    std=st.floats(0.005, 1),
    seed=st.integers(0, 99),
)
def test_read_back_from_a_random_convolution(
    kernel: int,
    stride: int,
    padding: int | str,
    mode: str,
    dilation: int,
    bias: bool,
    channels: int,
    mean: float,
    std: float,
    seed: int,
) -> None:
    """The mean within a tenth of the deviation, whatever the border does; the deviation within a factor of 2."""
    stride = 1 if padding == "same" else stride
    padding = "same" if padding == "same" else min(int(padding), kernel // 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = nn.Conv2d(
            channels, 32, kernel, stride, padding, dilation=dilation, bias=bias, padding_mode=mode
        ).double()
    x = shown(Normalisation(mean=(mean,), std=(std,)), (channels, 32, 32)).double()
    with torch.no_grad():
        var, centre = torch.var_mean(layer(x), (0, 2, 3))
    found_mean, found_std = read_back(layer, centre, var, (32, 32))
    true_std, true_mean = torch.std_mean(x, (0, 2, 3))
    assert ((found_mean - true_mean) / true_std).abs().max() < 0.1
    assert 1 / 2 < float(found_std.mean() / true_std.mean()) < 2


class Normalised(nn.Module):
    """A network that normalises its images itself."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body((x - 0.5) / 0.25)


def test_a_network_that_normalises_its_images_itself_takes_pixels() -> None:
    body = network(*stem(), shown=shown(Normalisation(mean=(0.5,), std=(0.25,))))
    model = Normalised(body).eval()
    assert input_spec(Case(network=model, example=EXAMPLE), model).spec == KNOWN["none"].spec((3, 32, 32))


def test_a_norm_of_the_images_themselves_tells_each_channel() -> None:
    known = Normalisation(mean=(0.1, 0.5, 0.9), std=(0.5, 1.0, 0.25))
    x = shown(known)
    model = network(nn.BatchNorm2d(3), *stem(), shown=x)
    seen = _first_norm(model, (3, 32, 32))
    assert seen is not None
    assert seen.norm == "0"
    assert seen.mean.tolist() == pytest.approx(x.mean((0, 2, 3)).tolist(), abs=1e-4)
    assert seen.std.tolist() == pytest.approx(x.transpose(0, 1).flatten(1).std(1).tolist(), rel=0.01)


def test_a_norm_that_is_not_alone_behind_the_stem_is_found() -> None:
    """In a pre-activation network the stem's output goes past its norm too."""
    model = parse_arch("preactresnet18:width=4").build()
    with torch.no_grad():
        model.train()(shown(KNOWN["cifar10"]))
    seen = _first_norm(model.eval(), (3, 32, 32))
    assert seen is not None
    assert seen.norm == "layer1.0.bn1"


class Standardised(nn.Conv2d):
    """Its weight is not what it computes with."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight - self.weight.mean(), padding=1)


@pytest.mark.parametrize(
    "modules",
    [
        stem(lambda c: nn.GroupNorm(4, c)),  # type: ignore[arg-type]
        (stem()[0],),
        (nn.PixelUnshuffle(2), *stem(channels=12)),
        (Standardised(3, 8, 3), nn.BatchNorm2d(8)),
        (nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6)),
        (stem()[0], nn.BatchNorm2d(24, track_running_stats=False)),
        (stem()[0], nn.MaxPool2d(2), nn.BatchNorm2d(24)),
    ],
    ids=["GroupNorm", "no norm", "rearranged", "computed weight", "groups", "no statistics", "pooled"],
)
def test_where_no_norm_tells_it_is_assumed_and_this_is_said(modules: tuple[nn.Module, ...]) -> None:
    model = network(*copy.deepcopy(modules), shown=shown(KNOWN["none"]))
    found = input_spec(Case(network=model, example=EXAMPLE), model)
    assert found.spec == _CIFAR10.spec((3, 32, 32))
    assert found.normalisation_from.startswith("assumed, ")
    assert "--mean and --std" in found.note


def test_a_norm_that_saw_no_image_tells_nothing() -> None:
    model = nn.Sequential(*stem(), nn.Flatten(), nn.Linear(24 * 32 * 32, 3)).eval()
    assert _first_norm(model, (3, 32, 32)) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 0.0])
def test_damaged_statistics_tell_nothing(value: float) -> None:
    model = network(*stem(), shown=shown(KNOWN["none"]))
    model[1].running_var.fill_(value)
    assert _first_norm(model, (3, 32, 32)) is None


def test_filters_that_were_switched_off_say_nothing() -> None:
    model = network(*stem(), shown=shown(KNOWN["half"]))
    with torch.no_grad():
        model[0].weight[::3] = 0
        model[0].bias[::3] = 0
        model[0].weight[1], model[0].bias[1], model[1].running_mean[1], model[1].running_var[1] = 0, 4.0, 4.0, 0
    assert input_spec(Case(network=model, example=EXAMPLE), model).spec == KNOWN["half"].spec((3, 32, 32))


def test_large_images_and_grey_ones_have_an_assumption_of_their_own() -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
    large = input_spec(Case(network=model, example=torch.zeros(1, 3, 224, 224)), model)
    assert large.spec.std == (0.229, 0.224, 0.225)
    model = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 2)).eval()
    grey = input_spec(Case(network=model, example=torch.zeros(1, 1, 28, 28)), model)
    assert grey.spec == InputSpec(shape=(1, 28, 28), mean=(0.46,), std=(0.25,))


def test_what_is_known_comes_first() -> None:
    model = network(*stem(), shown=shown(KNOWN["cifar10"]))
    gtsrb = input_spec(Case(network=model, spec=DATASETS["gtsrb"]), model)
    assert gtsrb.spec == KNOWN["none"].spec((3, 32, 32))
    assert gtsrb.shape_from == gtsrb.normalisation_from == "of the data set gtsrb"
    own = Normalisation(mean=(0.5,), std=(0.25,))
    said = input_spec(Case(network=model, spec=DATASETS["gtsrb"], example=(EXAMPLE,), normalisation=own), model)
    assert said.note == "images 3x32x32 (given), mean 0.5,0.5,0.5 and std 0.25,0.25,0.25 (given)"


def test_timm_says_what_its_networks_take() -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
    model.pretrained_cfg = {"input_size": (3, 24, 40), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    found = input_spec(Case(network=model), copy.deepcopy(model))
    assert found.spec == KNOWN["half"].spec((3, 24, 40))
    assert "timm" in found.shape_from
    assert "timm" in found.normalisation_from
    trained = network(*stem(), shown=shown(KNOWN["none"]))
    trained.pretrained_cfg = model.pretrained_cfg
    assert input_spec(Case(network=trained), trained).spec.std == (1.0, 1.0, 1.0)  # its statistics say otherwise


def test_an_unknown_size_is_asked_for() -> None:
    model = network(*stem(), shown=shown(KNOWN["none"]))
    with pytest.raises(MethodError, match=r"--input 3x32x32 \(example=...\)"):
        input_spec(Case(network=model), model)
    with pytest.raises(MethodError, match=r"fails on images of 1x8x8: .*; give their size with --input"):
        input_spec(Case(network=model, example=torch.zeros(2, 1, 8, 8)), model)
    with pytest.raises(SettingError, match=r"mean: expected 1 value or 3 \(the images are 3x32x32\), got 2: 0.5,0.4"):
        two = Normalisation(mean=(0.5, 0.4), std=(1.0,))
        input_spec(Case(network=model, example=EXAMPLE, normalisation=two), model)


def test_nothing_is_changed_and_nothing_is_drawn() -> None:
    model = network(*stem(), shown=shown(KNOWN["none"]))
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    generator = torch.Generator().manual_seed(3)
    drawn = generator.get_state()
    input_spec(Case(network=model, example=EXAMPLE, generator=generator), model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(drawn, generator.get_state())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_network_of_another_precision(dtype: torch.dtype) -> None:
    model = network(*stem(), shown=shown(KNOWN["half"])).to(dtype)
    assert input_spec(Case(network=model, example=EXAMPLE), model).spec == KNOWN["half"].spec((3, 32, 32))
