"""What stands behind the data-based methods' presets, by hand."""

import math
import sys
from typing import ClassVar

import pytest
import torch
from test_data_based_contracts import SPEC, images, network
from torch import Tensor, nn

from unbackdoor.defences.data_based.anp import ANP
from unbackdoor.defences.data_based.ep import EP, entropy
from unbackdoor.defences.data_based.ibau import IBAU
from unbackdoor.defences.data_based.nad import NAD
from unbackdoor.defences.data_based.norm_channels import NormChannels
from unbackdoor.defences.data_based.rnp import RNP
from unbackdoor.defences.table import parse_method
from unbackdoor.defender.images import DefenderData
from unbackdoor.errors import MethodError, SettingError
from unbackdoor.graph import layer_graph


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("ep@as_published", EP(histogram="published")),
        ("ep@backdoorbench", EP(histogram="published", bin_width=0.1, batch_size=256, beta="zero")),
        ("ibau@as_published", IBAU(radius=math.inf)),
        (
            "ibau@backdoorbench",
            IBAU(lr=1e-4, batch_size=256, radius=math.inf, space="normalised", amsgrad=True),
        ),
        ("nad@as_published", NAD(cutout=2)),
        (
            "nad@backdoorbench",
            NAD(
                epochs=10, lr=0.01, fall=10, batch_size=256, weight_decay=5e-4, cutout=0, nesterov=False, maps="stages"
            ),
        ),
        ("rnp@as_published", RNP(holdout=0.0, clip=math.inf)),
    ],
)
def test_what_a_preset_stands_for(text: str, method: object) -> None:
    assert parse_method(text) == method
    name, preset = text.split("@")
    assert parse_method(name, preset=preset) == method


@pytest.mark.parametrize(
    ("text", "preset", "says"),
    [
        ("bnp@", None, "method bnp: unknown preset ''; it has backdoorbench"),
        ("bnp@as_printed", None, "method bnp: unknown preset 'as_printed'; it has backdoorbench"),
        ("bnp@backdoorbench:u=2", None, "give settings or --preset backdoorbench, not both"),
        ("bnp@backdoorbench", "backdoorbench", "give a preset behind @ or with --preset, not both"),
    ],
)
def test_presets_that_are_none(text: str, preset: str | None, says: str) -> None:
    with pytest.raises(SettingError, match=says):
        parse_method(text, preset=preset)


def test_eps_published_histogram_by_hand() -> None:
    # Mean 0, sample variance 50 / 5: in bins of 0.5 from the smallest value the places are (x + 4) / sqrt(10) / 0.5,
    # which is 0, 1.26, 1.26, 3.16, 4.43, 5.06.
    features = torch.tensor([[-4.0], [-2.0], [-2.0], [1.0], [3.0], [4.0]])
    third, sixth = math.log(3) / 3, math.log(6) / 6
    assert float(entropy(features, 0.5)) == pytest.approx(third + 4 * sixth)
    # The smallest value lies on an edge, the largest in a piece of 0.06 bins: neither is counted, both divide.
    assert float(entropy(features, 0.5, whole=False)) == pytest.approx(third + 2 * sixth)
    # In the first bin of 2 lie half of the values, beside the smallest; the rest is no whole bin. Of 3 there is none.
    assert float(entropy(features, 2.0, whole=False)) == pytest.approx(math.log(2) / 2)
    assert float(entropy(features, 3.0, whole=False)) == 0


def test_eps_bins_are_the_layers_not_the_channels() -> None:
    """A channel that has neither the smallest nor the largest value of its layer loses nothing to the edges."""
    wide = torch.tensor([-10.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 10.1])
    narrow = torch.tensor([-1.0, 1.2, -0.9, 1.1, -1.3, 0.8, -0.7, 0.8])
    both, published = (entropy(torch.stack([wide, narrow], 1), 0.01, whole=whole) for whole in (True, False))
    assert float(published[1]) == pytest.approx(float(both[1]))
    assert float(published[0]) < float(both[0])


def test_ep_prunes_by_the_histogram_that_it_is_told() -> None:
    model, (pixels, labels) = network(), images()
    found = [
        EP(histogram=histogram, bin_width=0.5, crop_padding=0)(
            model, pixels, labels, generator=torch.Generator().manual_seed(0), spec=SPEC
        ).report.layers
        for histogram in ("whole", "published")
    ]
    for whole, published in zip(*found, strict=True):
        assert whole.path == published.path
        # At most two of twelve shares of a channel are missing, of which one is the layer's smallest value.
        assert sum(a != b for a, b in zip(whole.scores, published.scores, strict=True)) >= 1


class Plane(nn.Module):
    """Logits (x . (1, 2, 2), 0) of the three values of an image of one pixel."""

    def forward(self, x: Tensor) -> Tensor:
        first = x.flatten(1) @ torch.tensor([1.0, 2.0, 2.0])
        return torch.stack([first, torch.zeros_like(first)], 1)


@pytest.mark.parametrize(
    ("radius", "scale", "delta"),
    [
        (
            math.inf,
            1.0,
            (-5.0, -10.0, -10.0),
        ),  # -10 times the slope (1, 2, 2) / 2 of -CE where both classes are as likely
        (10.0, 1.0, (-10 / 3, -20 / 3, -20 / 3)),  # from length 15 to 10
        (
            math.inf,
            4.0,
            (-20.0, -40.0, -40.0),
        ),  # a pixel moves the input by 1 / std = 4, and so the slope is 4 times it
    ],
)
def test_ibaus_perturbation_by_hand(radius: float, scale: float, delta: tuple[float, ...]) -> None:
    batches = [(torch.zeros(2, 3, 1, 1), torch.zeros(2, dtype=torch.int64))]
    found = IBAU(radius=radius)._inner(Plane(), batches, torch.tensor(scale))
    assert found.flatten().tolist() == pytest.approx(delta, rel=1e-5)


def test_ibaus_space() -> None:
    pixels, labels = images()
    data = DefenderData(pixels, labels, SPEC)
    std = torch.tensor(SPEC.std).view(1, 3, 1, 1)
    assert torch.allclose(IBAU().scale_of(data), 1 / std)
    assert torch.equal(IBAU(space="normalised").scale_of(data), torch.ones(1, 3, 1, 1))


@pytest.mark.parametrize("amsgrad", [False, True])
def test_ibaus_optimiser(monkeypatch: pytest.MonkeyPatch, amsgrad: bool) -> None:
    told: list[dict[str, object]] = []
    adam = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda weights, **how: told.append(how) or adam(weights, **how))
    method = IBAU(rounds=1, batch_size=8, lr=1e-4, amsgrad=amsgrad)
    method(Watching(), *images(8), generator=torch.Generator().manual_seed(0), spec=SPEC)
    assert told == [{"lr": 1e-4, "amsgrad": amsgrad}]


def test_nads_momentum_and_rate() -> None:
    assert NAD()._recipe(20).nesterov
    recipe = NAD.backdoorbench()._recipe(10)
    assert not recipe.nesterov
    assert recipe.momentum == 0.9
    assert {recipe.lr_at(step, 100) for step in range(100)} == {0.01}
    assert [NAD.as_published()._recipe(20).lr_at(step, 20) for step in (0, 1, 2, 19)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01]
    )


@pytest.mark.parametrize(
    ("arch", "maps", "weights", "paths"),
    [
        ("preactresnet18", "last", 7 + 11 + 13, "layer3.0.bn1 (16x16), layer4.0.bn1 (8x8), layer4 (4x4)"),
        ("preactresnet18", "stages", 7 + 11, "layer3 (8x8), layer4 (4x4)"),
        ("vgg19_bn", "stages", 7 + 11, "features.38 (4x4), features.51 (2x2)"),  # one module holds all of its maps
    ],
)
def test_nads_maps_and_their_weights(
    monkeypatch: pytest.MonkeyPatch, arch: str, maps: str, weights: int, paths: str
) -> None:
    """With every attention loss replaced by 1 the student's loss is its cross-entropy and the weights."""
    model, losses = network(f"{arch}:width=4"), []
    monkeypatch.setattr("unbackdoor.defences.data_based.nad.attention_loss", lambda *_: torch.ones(()))
    for betas in ((0.0, 0.0, 0.0), (7.0, 11.0, 13.0)):
        method = NAD(
            teacher_epochs=1,
            epochs=1,
            lr=1e-6,
            batch_size=12,
            maps=maps,
            **{f"beta{n}": beta for n, beta in enumerate(betas, start=1)},
        )
        outcome = method(model, *images(), generator=torch.Generator().manual_seed(0), spec=SPEC)
        losses.append(outcome.report.stages[1].losses[0])
    assert losses[1] - losses[0] == pytest.approx(weights, abs=1e-3)
    [remark] = outcome.report.left_alone
    assert remark.path == paths


class Watching(nn.Module):
    """Notes whether it is called under autocast."""

    seen: ClassVar[list[bool]] = []

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        Watching.seen.append(torch.is_autocast_enabled("cpu"))
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


@pytest.mark.parametrize(
    ("method", "fast"),
    [
        (ANP(iterations=2, batch_size=4), False),
        (RNP(unlearn_epochs=1, recover_epochs=1, batch_size=4, holdout=0.0), False),
        (parse_method("ft:epochs=1,batch_size=4"), True),
    ],
)
def test_masks_are_never_learnt_in_bfloat16(monkeypatch: pytest.MonkeyPatch, method: object, fast: bool) -> None:
    tuning, fit = sys.modules["unbackdoor.defences.data_based.tuning"], sys.modules["unbackdoor.train.fit"]
    monkeypatch.setattr(tuning, "autocast_dtype", lambda _device: torch.bfloat16)
    monkeypatch.setattr(fit, "training_dtype", lambda _device, _model: torch.bfloat16)
    model = Watching()
    Watching.seen.clear()
    method(model, *images(8), generator=torch.Generator().manual_seed(0), spec=SPEC)
    assert any(Watching.seen) == fast


@pytest.mark.parametrize("kind", [ANP, RNP])
def test_masks_that_say_nothing_are_refused(kind: type) -> None:
    """Nothing would be pruned, and nobody told why: NaN is neither at a threshold nor below it."""
    model = Watching().eval()
    channels = NormChannels(model, layer_graph(model), kind.name)
    masks = torch.tensor([1.0, math.nan, 0.5, 0.0])
    with pytest.raises(
        MethodError, match=f"{kind.name}: training diverged: some masks are not finite; try a smaller lr"
    ):
        channels.select(masks, 0.2, None, tolerance=0.05, beta="keep")
