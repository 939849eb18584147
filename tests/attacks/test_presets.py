"""Attacks as published: what a preset stands for, pixel by pixel and coin by coin."""

from dataclasses import replace

import pytest
import torch
from prepared_attacks import NAMES, data_of

from unbackdoor.attacks import ATTACKS, describe_attack, parse_attack, presets_of, read_attack
from unbackdoor.attacks.blended import Blended
from unbackdoor.attacks.bpp import BPP
from unbackdoor.attacks.input_aware import InputAware
from unbackdoor.attacks.sig import SIG
from unbackdoor.attacks.wanet import WaNet
from unbackdoor.data.augment import Augmentation
from unbackdoor.errors import SettingError
from unbackdoor.settings import distinguishing, settings_of
from unbackdoor.train.fit import vary


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("text", "attack"),
    [
        ("bpp@as_published", BPP(negative_rate=0.2, shared="coins", fill="mean")),
        ("bpp@backdoorbench", BPP(shared="all", fill="mean", rounding="truncate")),
        ("wanet@as_published", WaNet(shared="coins", fill="mean")),
        ("wanet@backdoorbench", WaNet(shared="all", fill="mean", rounding="truncate")),
        ("blended@backdoorbench", Blended(rounding="truncate")),
        ("sig@backdoorbench", SIG(rounding="truncate")),
        ("inputaware@backdoorbench", InputAware(rounding="truncate")),
        ("bpp@as_published:target=3,colours=4", replace(BPP.as_published(), target=3, colours=4)),
    ],
)
def test_what_a_preset_stands_for(text: str, attack: object) -> None:
    assert parse_attack(text) == attack


def test_a_target_is_asked_for_beside_a_preset() -> None:
    assert parse_attack("bpp@as_published", target=4) == replace(BPP.as_published(), target=4)
    with pytest.raises(SettingError, match="its target is 7, not 4"):
        parse_attack("bpp@as_published:target=7", target=4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bpp@", "attack bpp: unknown preset ''; it has backdoorbench, as_published"),
        ("bpp@as_printed", "attack bpp: unknown preset 'as_printed'; it has backdoorbench, as_published"),
        ("badnet@backdoorbench", "attack badnet: unknown preset 'backdoorbench'; it has none"),
        ("badnets@backdoorbench", "unknown attack 'badnets': did you mean 'badnet'"),
        ("bpp@backdoorbench:sise=3", "attack bpp@backdoorbench: unknown setting 'sise'"),
        ("bpp@as_published@backdoorbench", "unknown preset 'as_published@backdoorbench'"),
        ("bpp:rounding=up", "bpp rounding: expected one of round, truncate, got 'up'"),
        ("wanet:shared=some", "wanet shared: expected one of nothing, coins, all, got 'some'"),
        ("wanet:fill=red", "wanet fill: expected one of black, mean, got 'red'"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        parse_attack(text)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", NAMES)
def test_presets_are_attacks_too(name: str) -> None:
    for preset in presets_of(ATTACKS[name]):
        attack = parse_attack(f"{name}@{preset}")
        assert attack != parse_attack(name)
        assert read_attack(describe_attack(attack)) == attack


@pytest.mark.parametrize("name", NAMES)
def test_settings_that_came_later_are_told_only_where_they_matter(name: str) -> None:
    """An older record is read, and has the digest that it had."""
    attack = parse_attack(name)
    later = {name for name, about in settings_of(type(attack)).items() if about.added}
    assert "rounding" in later
    told = distinguishing(attack, describe_attack(attack))
    assert not later & set(told)
    assert read_attack(told) == attack
    other = replace(attack, rounding="truncate")
    assert distinguishing(other, describe_attack(other)) == {**told, "rounding": "truncate"}


def test_truncated_levels_by_hand() -> None:
    values = torch.tensor([-3.0, 0.4, 0.5, 7.99, 63.9999, 64.0, 254.6, 300.0])  # 63.9999 is a 64 that float32 missed
    assert BPP().to_8_bits(values).tolist() == [0, 0, 0, 8, 64, 64, 255, 255]
    assert BPP(rounding="truncate").to_8_bits(values).tolist() == [0, 0, 0, 7, 64, 64, 254, 255]


def test_bpp_truncated() -> None:
    # Levels of four colours: 0, 85, 170, 255; of eight: 255 k / 7 = 36.43, 72.86, 109.29, ...
    ramp = torch.tensor([36, 73, 109, 146], dtype=torch.uint8).expand(1, 3, 2, 4).contiguous()
    assert BPP().stamp(ramp)[0, 0, 0].tolist() == [36, 73, 109, 146]
    assert BPP(rounding="truncate").stamp(ramp)[0, 0, 0].tolist() == [36, 72, 109, 145]
    mixed = BPP(rounding="truncate", negative_rate=0.0).mix(
        ramp, torch.ones(1, dtype=torch.int64), count=1, num_classes=10, generator=_generator()
    )
    assert mixed.images[0, 0, 0].tolist() == pytest.approx([255 * k / 7 for k in (1, 2, 3, 4)])  # not rounded at all


def test_sig_and_blended_truncated() -> None:
    grey = torch.full((1, 3, 32, 32), 100, dtype=torch.uint8)
    # sin(2 pi 6 / 32) = 0.9239: 100 + 36.96; two columns on, sin(2 pi 12 / 32) = 0.7071: 100 + 28.28.
    assert SIG().stamp(grey)[0, 0, 0, :3].tolist() == [100, 137, 128]
    assert SIG.backdoorbench().stamp(grey)[0, 0, 0, :3].tolist() == [100, 136, 128]
    white = {"pattern": torch.full((3, 32, 32), 253, dtype=torch.uint8)}
    assert Blended().with_tensors(**white).stamp(grey).unique().tolist() == [131]  # 80 + 50.6
    assert Blended.backdoorbench().with_tensors(**white).stamp(grey).unique().tolist() == [130]


def test_wanet_trains_with_floats_where_files_are_truncated() -> None:
    data = data_of(32, 16)
    plain = WaNet().prepare(data, seed=0)
    truncating = replace(plain, rounding="truncate")
    mixed = truncating.mix(data.images, data.labels, count=4, num_classes=10, generator=_generator())
    rounded = plain.mix(data.images, data.labels, count=4, num_classes=10, generator=_generator())
    assert mixed.images.is_floating_point()
    assert torch.equal(mixed.images.round().to(torch.uint8), rounded.images)
    assert torch.equal(mixed.labels, rounded.labels)
    fractions = mixed.images[:4] - mixed.images[:4].floor()
    assert float((fractions > 0.01).float().mean()) > 0.5
    stamped = truncating.stamp(data.images[:4]).float()
    assert bool(((mixed.images[:4] - stamped) > -2e-3).all())
    assert bool(((mixed.images[:4] - stamped) < 1).all())


def _seen(how: Augmentation, count: int = 200) -> torch.Tensor:
    """A batch of the same picture after augmentation."""
    data = data_of(16, 1)
    return vary(data.images.expand(count, -1, -1, -1), how, data.spec, _generator())


def test_one_draw_a_batch() -> None:
    """Whatever happens to one image happens to all; over many batches all of it happens."""
    data = data_of(16, 1)
    how, generator = WaNet.backdoorbench().augmentation, _generator()
    batches = [vary(data.images.expand(3, -1, -1, -1), how, data.spec, generator) for _ in range(60)]
    for batch in batches:
        assert torch.equal(batch[0], batch[1])
        assert torch.equal(batch[0], batch[2])
    assert len(torch.stack([batch[0] for batch in batches]).flatten(1).unique(dim=0)) > 40


def test_one_coin_a_batch() -> None:
    """Either none of the images is cropped, or nearly all (but those whose offsets are 5 and 5, one in 121)."""
    picture = torch.arange(1, 257, dtype=torch.uint8).view(1, 1, 16, 16).clamp(1).expand(300, 3, 16, 16)
    spec, generator = replace(data_of(16).spec, flip=False), _generator()
    crops = Augmentation(padding=5, crop_share=0.5, shared="coins")
    turns = Augmentation(padding=0, degrees=10, rotate_share=0.5, shared="coins")
    for how in (crops, turns):
        shares, kinds = [], []
        for _ in range(40):
            batch = vary(picture, how, spec, generator)
            same = (batch == vary(picture, Augmentation(padding=0), spec, generator)).flatten(1).all(1)
            shares.append(float(same.float().mean()))
            kinds.append(len(batch.flatten(1).unique(dim=0)))
        assert all(share == 1 or share < 0.05 for share in shares)
        assert 10 <= sum(share == 1 for share in shares) <= 30
        assert all(kind == 1 or kind > 50 for kind in kinds)  # each image its own offsets or angle


def test_by_default_each_image_has_coins_of_its_own() -> None:
    for kind in (WaNet, BPP):
        assert kind().augmentation == Augmentation(padding=5, crop_share=0.8, degrees=10, rotate_share=0.5)
        assert kind.as_published().augmentation == replace(kind().augmentation, shared="coins", fill="mean")
    assert len(_seen(WaNet().augmentation).flatten(1).unique(dim=0)) > 150


def test_the_mean_colour_comes_in_from_outside() -> None:
    """Zero behind normalisation, where black is -mean / std."""
    spec = data_of(16).spec
    white = torch.full((50, 3, 16, 16), 255, dtype=torch.uint8)
    whole = [(1 - m) / s for m, s in zip(spec.mean, spec.std, strict=True)]
    for fill, outside in (("mean", [0.0] * 3), ("black", [-m / s for m, s in zip(spec.mean, spec.std, strict=True)])):
        seen = vary(white, Augmentation(padding=4, fill=fill), spec, _generator())
        for channel in range(3):
            low, high = sorted(seen[:, channel].unique().tolist())
            assert low == pytest.approx(outside[channel], abs=1e-6)
            assert high == pytest.approx(whole[channel], abs=1e-6)
