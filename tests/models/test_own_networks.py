"""The package's own networks: counts that the literature prints, shapes, and what `--arch` says of them."""

import pytest
import torch
from torch import nn

from unbackdoor.errors import ArchitectureError
from unbackdoor.models import ARCHITECTURES, parse_arch


def _count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


@pytest.mark.parametrize(
    ("name", "parameters", "convolutions", "norms"),
    [
        ("resnet18", 11_173_962, 20, 20),
        ("resnet18_gn", 11_173_962, 20, 0),
        ("resnet34", 21_282_122, 36, 36),
        # torchvision's 25,557,032 less the classifier of 1,000 and the 7x7 stem, plus that of 10 and the 3x3 one.
        ("resnet50", 25_557_032 - 2_049_000 - 9_408 + 20_490 + 1_728, 53, 53),
        ("preactresnet18", 11_171_146, 20, 16),
        # WRN-16-4: the paper's table says 2.7 million.
        ("wideresnet16", 2_748_890, 16, 13),
        ("vgg16_bn", 14_728_266, 13, 13),
        ("vgg16_bn_elu", 14_728_266, 13, 13),
        ("vgg19_bn", 20_040_522, 16, 16),
        ("vgg19", 20_029_514, 16, 0),
        # torchvision's with a classifier of 10; DenseNet also with a 3x3 stem, and no norm behind it.
        ("mobilenetv2", 3_504_872 - 1_281_000 + 12_810, 52, 52),
        ("densenet121", 7_978_856 - 1_025_000 + 10_250 - 9_408 + 1_728 - 128, 120, 120),
    ],
)
def test_counts(name: str, parameters: int, convolutions: int, norms: int) -> None:
    model = parse_arch(name).build(device="meta")
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert (_count(model, nn.Conv2d), _count(model, nn.BatchNorm2d)) == (convolutions, norms)
    assert _count(model, nn.Linear) == 1


def test_vit_small_counts() -> None:
    """Per block 4 w^2 of attention, 8 w^2 of mlp, 9 w of their biases, 4 w of norms; w = 192, 64 patches of 4x4x3."""
    model = parse_arch("vit_small").build(device="meta")
    w = 192
    block = 12 * w * w + 9 * w + 4 * w
    around = (48 * w + w) + 64 * w + 2 * w + (10 * w + 10)
    assert sum(p.numel() for p in model.parameters()) == 6 * block + around
    assert (_count(model, nn.Conv2d), _count(model, nn.BatchNorm2d), _count(model, nn.LayerNorm)) == (1, 0, 13)


def test_mixer_small_counts() -> None:
    """Per block an MLP over 64 patches with 64 hidden units, one over 128 channels with 512, biases and two norms."""
    model = parse_arch("mixer_small").build(device="meta")
    block = (2 * 64 * 64 + 64 + 64) + (2 * 128 * 512 + 512 + 128) + 4 * 128
    around = (48 * 128 + 128) + 2 * 128 + (10 * 128 + 10)
    assert sum(p.numel() for p in model.parameters()) == 4 * block + around


@pytest.mark.parametrize(("name", "narrow"), [("mobilenetv2", "width=4"), ("densenet121", "growth=2")])
def test_a_stride_of_the_stem_halves_the_maps(name: str, narrow: str) -> None:
    sizes = []
    for stride in (1, 2):
        model = parse_arch(f"{name}:{narrow},stride={stride}").build()
        last = [module for module in model.modules() if isinstance(module, nn.Conv2d)][-1]
        last.register_forward_hook(lambda _module, _inputs, out: sizes.append(out.shape[-1]))
        with torch.no_grad():
            model(torch.zeros(1, 3, 32, 32))
    assert sizes[0] == 2 * sizes[1]


def test_elu_stands_behind_every_convolution() -> None:
    model = parse_arch("vgg16_bn_elu:width=2").build(device="meta")
    assert (_count(model, nn.ELU), _count(model, nn.ReLU)) == (13, 0)


#: What makes each network narrow, where it is not `width`.
_NARROW = {"densenet121": "growth=2", "vit_small": "width=6,depth=1", "mixer_small": "width=6,depth=1"}


@pytest.mark.parametrize("name", list(ARCHITECTURES))
@pytest.mark.parametrize("size", [32, 64])
def test_images_of_32_and_64_pixels_give_one_logit_a_class(name: str, size: int) -> None:
    fixed = f",size={size}" if name in ("vit_small", "mixer_small") else ""  # a weight for each position
    model = parse_arch(f"{name}:{_NARROW.get(name, 'width=2')},num_classes=7{fixed}").build()
    assert not model.training
    with torch.no_grad():
        assert model(torch.zeros(2, 3, size, size)).shape == (2, 7)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name.startswith(("resnet", "preact", "vgg"))])
def test_width_and_classes_are_options(name: str) -> None:
    model = parse_arch(f"{name}:width=8,num_classes=3").build(device="meta")
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    last = next(module for module in model.modules() if isinstance(module, nn.Linear))
    assert (first.out_channels, last.out_features) == (8, 3)
    assert last.in_features == (256 if name == "resnet50" else 64)


def test_resnet18_has_torchvisions_names() -> None:
    torchvision = pytest.importorskip("torchvision")
    ours = parse_arch("resnet18:num_classes=1000").build(device="meta").state_dict()
    with torch.device("meta"):
        theirs = torchvision.models.resnet18().state_dict()
    assert list(ours) == list(theirs)
    assert [k for k in ours if ours[k].shape != theirs[k].shape] == ["conv1.weight"]  # the 3x3 stem


def test_resnet50_has_torchvisions_names() -> None:
    torchvision = pytest.importorskip("torchvision")
    ours = parse_arch("resnet50:num_classes=1000").build(device="meta").state_dict()
    with torch.device("meta"):
        theirs = torchvision.models.resnet50().state_dict()
    assert list(ours) == list(theirs)
    assert [k for k in ours if ours[k].shape != theirs[k].shape] == ["conv1.weight"]


def test_a_patch_that_does_not_fit_is_one_line() -> None:
    with pytest.raises(ArchitectureError, match="patch 5 must divide size 32"):
        parse_arch("vit_small:patch=5").build()


def test_preactresnet18_has_the_names_that_circulate() -> None:
    names = set(parse_arch("preactresnet18").build(device="meta").state_dict())
    assert {"conv1.weight", "layer2.0.shortcut.0.weight", "layer4.1.bn2.running_var", "linear.bias"} <= names
    assert not any(name.startswith("bn") for name in names)  # no norm outside the blocks


def test_every_convolution_of_vgg19_bn_has_its_norm_behind_it() -> None:
    features = list(parse_arch("vgg19_bn").build(device="meta").features)
    kinds = [type(m).__name__ for m in features]
    assert kinds == (
        (["Conv2d", "BatchNorm2d", "ReLU"] * 2 + ["MaxPool2d"]) * 2
        + (["Conv2d", "BatchNorm2d", "ReLU"] * 4 + ["MaxPool2d"]) * 3
    )


def _random_norms(model: nn.Module) -> nn.Module:
    """Norms that are not the identity, so that their place matters."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
    return model.eval()


@torch.no_grad()
def test_resnet18_computes_what_torchvisions_does_behind_its_stem(generator: torch.Generator) -> None:
    models = pytest.importorskip("torchvision").models
    ours = _random_norms(parse_arch("resnet18").build())
    theirs = models.resnet18(num_classes=10).eval()
    theirs.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    theirs.maxpool = nn.Identity()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 32, 32, generator=generator)
    assert torch.allclose(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["vgg16_bn", "vgg19_bn", "vgg19"])
def test_vgg_computes_torchvisions_features(name: str, generator: torch.Generator) -> None:
    models = pytest.importorskip("torchvision").models
    ours = _random_norms(parse_arch(name).build())
    with torch.device("meta"):
        theirs = models.get_model(name).features
    theirs = theirs.to_empty(device="cpu").eval()
    theirs.load_state_dict(ours.features.state_dict())
    x = torch.randn(2, 3, 32, 32, generator=generator)
    assert torch.allclose(ours(x), ours.classifier(theirs(x).flatten(1)), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_preactresnet18_computes_its_paper(generator: torch.Generator) -> None:
    """Figure 4(e): norm and ReLU before each convolution; a projection reads the first pre-activation."""
    model = _random_norms(parse_arch("preactresnet18:width=8").build())
    x = torch.randn(2, 3, 32, 32, generator=generator)
    expected = model.conv1(x)
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in stage:
            first = block.bn1(expected).relu()
            second = block.bn2(block.conv1(first)).relu()
            same = first.shape[1] == second.shape[1] and first.shape[2] == second.shape[2]
            expected = block.conv2(second) + (expected if same else block.shortcut[0](first))
    assert torch.allclose(model(x), model.linear(expected.flatten(2).mean(2)), rtol=1e-4, atol=1e-5)
