"""Formulas by hand, and the two faults of the authors' code that are mended."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from prepared_attacks import data_of
from torch import Tensor, nn

from unbackdoor.attacks.input_aware import InputAware, InputAwareSession, blend, diversity, encoder_decoder, sharpen
from unbackdoor.attacks.training_control import others
from unbackdoor.errors import SettingError
from unbackdoor.train import Recipe, fit

RECIPE = Recipe(name="tiny", epochs=3, lr=0.05, batch_size=8, crop_padding=0)
DATA = data_of(8, 24)


def _session(attack: InputAware | None = None, *, rate: float = 0.25, epochs: int = 3) -> InputAwareSession:
    attack = attack or InputAware()
    return attack.session(rate=rate, spec=DATA.spec, seed=0, epochs=epochs, device=torch.device("cpu"))


def _as_they_are(images: Tensor, generator: torch.Generator) -> Tensor:
    del generator
    return (images.float() / 255 - torch.tensor(DATA.spec.mean).view(1, 3, 1, 1)) / torch.tensor(DATA.spec.std).view(
        1, 3, 1, 1
    )


def test_blend() -> None:
    x, pattern, mask = torch.tensor([10.0, 10, 10]), torch.tensor([30.0, 30, 30]), torch.tensor([0, 0.5, 1])
    assert blend(x, pattern, mask).tolist() == [10, 20, 30]


def test_sharpening() -> None:
    # tanh(20 M - 10) / 2 + 0.5: a half stays, 0.55 is tanh(1) / 2 + 0.5, the ends are nearly 0 and 1.
    masks = sharpen(torch.tensor([0.0, 0.45, 0.5, 0.55, 1.0])).tolist()
    assert masks == pytest.approx([0, 0.5 - math.tanh(1) / 2, 0.5, 0.5 + math.tanh(1) / 2, 1], abs=1e-6)


def test_diversity() -> None:
    # Images 3 apart in every pixel, outputs 2 apart: 3 / 2. Images that differ by 4 in one pixel of four: RMS 2;
    # outputs half apart: 4. The mean of both is 2.75.
    x, x2 = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    x2[0], x2[1, 0, 0, 0] = 3, 4
    out, out2 = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    out2[0], out2[1] = 2, 0.5
    assert float(diversity(x, x2, out, out2)) == pytest.approx(2.75, rel=1e-5)


def test_diversity_has_a_gradient_where_outputs_are_equal() -> None:
    """The root's own is infinite there."""
    out = torch.zeros(2, 1, 2, 2, requires_grad=True)
    diversity(torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2), out, torch.zeros(2, 1, 2, 2)).backward()
    assert out.grad is not None
    assert torch.isfinite(out.grad).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_networks_give_images_in_the_unit_interval(channels: int) -> None:
    out = encoder_decoder(channels).eval()(torch.randn(2, 3, 16, 16)).detach()
    assert out.shape == (2, channels, 16, 16)
    assert 0 <= float(out.min()) <= float(out.max()) <= 1
    assert not any(isinstance(m, nn.ReLU) for m in list(encoder_decoder(channels).children())[-2:])


class Fixed(nn.Module):
    """Says the same of every image."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.values.expand(len(x), -1, *x.shape[-2:])


def test_a_batch_by_hand() -> None:
    """A pattern of 0.6 everywhere through a mask of one half."""
    session = _session()
    session.pattern, session.mask = Fixed([0.6, 0.6, 0.6]), Fixed([0.5])
    x = torch.randn(8, 3, 8, 8)
    labels = torch.arange(8) + 1
    edited, goals, extra = session.after(x, labels, torch.Generator().manual_seed(0))
    pattern = (0.6 - session.mean) / session.std  # normalised, as images are
    assert torch.allclose(edited[:4], (x[:4] + pattern) / 2, atol=1e-6)  # two attacked, two cross images
    assert torch.equal(edited[4:], x[4:])
    assert goals.tolist() == [0, 0, 3, 4, 5, 6, 7, 8]
    assert labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert extra is not None
    assert extra.requires_grad


def test_images_and_patterns_are_compared_in_the_same_units() -> None:
    """The pattern is the image at half or a quarter of its contrast: L_div by hand, both sides normalised."""
    session = _session(rate=0.5)
    session.mask = Fixed([0.5])
    scale = torch.tensor([0.5, 0.25, 0.25]).view(1, 3, 1, 1)

    class Copy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:  # as pixels: half or a quarter of the contrast of the image itself
            return x * session.std * scale + session.mean

    session.pattern = Copy()
    x = torch.randn(4, 3, 8, 8)
    _, _, extra = session.after(x, torch.arange(4), torch.Generator().manual_seed(0))
    # The cross images' partners are drawn from the generator; patterns differ as the images do, scaled by channel.
    partners = x[others(slice(2, 4), 4, generator=torch.Generator().manual_seed(0))]
    apart = x[:2] - partners
    expected = (apart.square().mean((1, 2, 3)).sqrt() / (apart * scale).square().mean((1, 2, 3)).sqrt()).mean()
    assert extra is not None
    assert float(extra) == pytest.approx(float(expected), rel=1e-4)


def test_a_cross_image_wears_the_trigger_of_another_image() -> None:
    """A pattern that is the image itself, through a full mask: the cross image becomes the other one."""
    session = _session()
    session.pattern, session.mask = nn.Identity(), Fixed([1.0])
    session.mean, session.std = torch.zeros(()), torch.ones(())
    x = torch.randn(8, 3, 8, 8)
    for seed in range(10):
        edited, _, _ = session.after(x, torch.arange(8), torch.Generator().manual_seed(seed))
        assert torch.allclose(edited[:2], x[:2])
        for place in (2, 3):
            origin = (x - edited[place]).flatten(1).abs().amax(1).argmin()
            assert torch.allclose(edited[place], x[origin], atol=1e-5)
            assert int(origin) != place


def test_the_gradients_of_g_are_zeroed_at_each_step(tiny_net: Callable[..., nn.Module]) -> None:
    session = _session()
    left: list[bool] = []
    steps: list[float] = []
    step = session.step

    def spy(done: float) -> None:
        assert any(p.grad is not None and bool(p.grad.any()) for p in session.pattern.parameters())
        step(done)
        left.append(any(p.grad is not None and bool(p.grad.any()) for p in session.pattern.parameters()))
        steps.append(done)

    session.step = spy  # type: ignore[method-assign]
    list(fit(tiny_net(), DATA.images, DATA.labels, recipe=RECIPE, spec=DATA.spec, seed=0, session=session))
    assert left == [False] * 9
    assert steps == pytest.approx([k / 9 for k in range(1, 10)])


def test_the_classifier_gets_all_its_epochs(tiny_net: Callable[..., nn.Module]) -> None:
    """Stage 1 comes before them, and does not touch the classifier."""
    model, session = tiny_net(), _session(InputAware(mask_share=1.0))
    batches, prepared, before = [], [], [p.clone() for p in model.parameters()]
    model.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))

    def on_begin(done: int, total: int) -> None:
        prepared.append((done, total))
        assert batches == []
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))

    told = list(
        fit(model, DATA.images, DATA.labels, recipe=RECIPE, spec=DATA.spec, seed=0, session=session, on_begin=on_begin)
    )
    assert prepared == [(k, 9) for k in range(1, 10)]  # as many epochs, of three batches each
    assert [epoch.number for epoch in told] == [1, 2, 3]
    assert batches == [8] * 9


def test_stage_one_trains_the_mask_alone_and_stage_two_the_pattern_alone(tiny_net: Callable[..., nn.Module]) -> None:
    session = _session()

    def state(network: nn.Module) -> list[Tensor]:
        return [tensor.clone() for tensor in network.state_dict().values()]

    def same(one: list[Tensor], other: list[Tensor]) -> bool:
        return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

    pattern, mask = state(session.pattern), state(session.mask)
    session.begin(DATA.images, batch_size=8, vary=_as_they_are)
    assert same(state(session.pattern), pattern)
    trained = state(session.mask)
    assert not same(trained, mask)
    session.begin = lambda *args, **options: None  # type: ignore[method-assign]
    list(fit(tiny_net(), DATA.images, DATA.labels, recipe=RECIPE, spec=DATA.spec, seed=0, session=session))
    assert same(state(session.mask), trained)
    assert not same(state(session.pattern), pattern)


def test_stage_one_thins_the_masks_and_sets_them_apart() -> None:
    session = _session(InputAware(mask_share=12.0), epochs=3)
    x = (DATA.images.float() / 255 - session.mean) / session.std

    def loss() -> float:
        session.mask.train()  # with the batch's own statistics, as in training
        with torch.no_grad():
            masks = sharpen(session.mask(x))
        cover = torch.relu(masks - 0.032).mean()
        return float(100 * cover + diversity(x, x.roll(1, 0), masks, masks.roll(1, 0)))

    before = loss()
    session.begin(DATA.images, batch_size=8, vary=_as_they_are)
    assert not session.mask.training
    assert not any(parameter.requires_grad for parameter in session.mask.parameters())
    assert loss() < 0.8 * before


def test_stage_one_sees_augmented_images(tiny_net: Callable[..., nn.Module]) -> None:
    session = _session(InputAware(mask_share=1.0), epochs=1)
    seen: list[Tensor] = []
    session.mask.register_forward_pre_hook(lambda _module, args: seen.append(args[0].detach().clone()))
    recipe = replace(RECIPE, epochs=1, crop_padding=4)
    next(fit(tiny_net(), DATA.images, DATA.labels, recipe=recipe, spec=DATA.spec, seed=0, session=session))
    plain = {image.numpy().tobytes() for image in _as_they_are(DATA.images, torch.Generator())}
    assert len(seen) >= 3
    first = torch.cat(seen[:3])
    assert len(first) == len(DATA.images)
    assert sum(image.numpy().tobytes() in plain for image in first) < len(first) / 2


def test_a_set_smaller_than_a_batch_still_trains_the_mask() -> None:
    told: list[tuple[int, int]] = []
    session = _session(InputAware(mask_share=1.0))
    session.begin(DATA.images, batch_size=100, vary=_as_they_are, progress=lambda *steps: told.append(steps))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_batch_without_attacked_images_passes_as_it_is() -> None:
    session = _session(rate=0.0)
    x, labels = torch.randn(4, 3, 8, 8), torch.arange(4)
    edited, goals, extra = session.after(x, labels, torch.Generator().manual_seed(0))
    assert edited is x
    assert goals is labels
    assert extra is None


def test_attack_and_cross_images_share_a_batch_at_high_rates() -> None:
    _, goals, _ = _session(rate=1.0).after(torch.randn(7, 3, 8, 8), torch.arange(7) + 1, torch.Generator())
    assert goals.tolist() == [0, 0, 0, 4, 5, 6, 7]


@pytest.mark.parametrize(("size", "fits"), [(8, True), (28, False), (32, True), (64, True), (30, False)])
def test_sides_divisible_by_eight(size: int, fits: bool) -> None:
    if fits:
        InputAware().check(num_classes=10, size=size)
    else:
        with pytest.raises(SettingError, match=f"divisible by 8, got {size} pixels"):
            InputAware().check(num_classes=10, size=size)


def test_the_mask_is_for_all_channels_and_the_result_keeps_its_own_weights() -> None:
    session = _session()
    attack = session.result()
    before = attack.stamp(DATA.images)
    with torch.no_grad():
        for parameter in session.pattern.parameters():
            parameter.add_(1)
    assert torch.equal(attack.stamp(DATA.images), before)
    assert replace(attack, target=3).tensors is attack.tensors


@pytest.mark.parametrize("name", ["mask_density", "mask_weight", "diversity_weight", "mask_share", "lr"])
@pytest.mark.parametrize("value", [-0.1, float("inf"), float("nan")])
def test_settings_out_of_range(name: str, value: float) -> None:
    with pytest.raises(SettingError, match=f"inputaware {name}: expected a finite number of at least 0"):
        InputAware(**{name: value})
