"""Windows that lead to a class, on a network that looks at one corner."""

import pytest
import torch
from torch import Tensor, nn

from unbackdoor.defender import on_pixels, windows
from unbackdoor.defender.on_pixels import OnPixels
from unbackdoor.defender.triggers import Patch
from unbackdoor.defender.windows import Window, easiest_window
from unbackdoor.errors import MethodError
from unbackdoor.inputs import InputSpec

SIDE = 32
SPEC = InputSpec(shape=(3, SIDE, SIDE), mean=(0.0,) * 3, std=(1.0,) * 3)


class Place(nn.Module):
    """Class 1 if a square of 4 pixels is red alone, else class 0."""

    def __init__(self, top: int, left: int) -> None:
        super().__init__()
        self.top, self.left = top, left

    def forward(self, x: Tensor) -> Tensor:
        red, green, blue = x[:, :, self.top : self.top + 4, self.left : self.left + 4].mean((2, 3)).unbind(1)
        red_alone = 12 * (red - green - blue - 0.1)
        return torch.stack([torch.zeros_like(red_alone), red_alone], 1)


def pixels() -> Tensor:
    return torch.rand(30, *SPEC.shape, generator=torch.Generator().manual_seed(2))


def numbers(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("top", "left"), [(0, 0), (28, 28), (13, 5)])
def test_the_window_that_holds_the_place_is_found_and_its_pattern_leads_to_the_class(top: int, left: int) -> None:
    shown = OnPixels(Place(top, left), SPEC)
    found = easiest_window(shown, pixels(), 1, numbers())
    assert found.top <= top + 2
    assert found.top + 8 >= top + 2
    assert found.left <= left + 2
    assert found.left + 8 >= left + 2
    assert found.pattern.shape == (1, 3, 8, 8)
    assert found.loss < 0.7
    pattern = found.whole(found.pattern.sigmoid(), SIDE, SIDE)
    inside = found.whole(torch.ones(1, 1, 8, 8), SIDE, SIDE)
    before, after = pixels(), (1 - inside) * pixels() + pattern
    assert float((shown.logits(after)[:, 1] - shown.logits(before)[:, 1]).mean()) > 2


def test_where_no_window_leads_to_the_class_the_loss_is_large() -> None:
    class Never(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.mean((1, 2, 3)) + 5, x.mean((1, 2, 3))], 1)

    assert easiest_window(OnPixels(Never(), SPEC), pixels(), 1, numbers()).loss == pytest.approx(5, abs=0.1)


def test_the_same_seed_finds_the_same_and_few_windows_at_a_time_do_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = OnPixels(Place(28, 0), SPEC)
    one, same = (easiest_window(shown, pixels(), 1, numbers()) for _ in range(2))
    assert (one.top, one.left, one.loss) == (same.top, same.left, same.loss)
    assert torch.equal(one.pattern, same.pattern)
    monkeypatch.setattr(windows, "AT_ONCE", 1)
    alone = easiest_window(shown, pixels(), 1, numbers())
    assert (alone.top, alone.left) == (one.top, one.left)


@pytest.mark.parametrize("shape", [(1, 3, 5), (3, 2, 1), (3, 8, 8)])
def test_small_images_have_small_windows(shape: tuple[int, int, int]) -> None:
    spec = InputSpec(shape=shape, mean=(0.0,) * shape[0], std=(1.0,) * shape[0])
    model = nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], 2)).requires_grad_(False)
    found = easiest_window(OnPixels(model, spec), torch.rand(4, *shape), 1, numbers())
    assert found.pattern.shape == (1, shape[0], max(1, shape[1] // 4), max(1, shape[2] // 4))
    assert found.whole(found.pattern, *shape[1:]).shape == (1, *shape)


def test_a_part_stands_in_its_place() -> None:
    window = Window(1, 2, torch.zeros(1, 1, 2, 1), 0.0)
    whole = window.whole(torch.tensor([[[[3.0], [4.0]]]]), 4, 4)
    assert whole.nonzero().tolist() == [[0, 0, 1, 2], [0, 0, 2, 2]]
    assert whole.flatten().tolist().count(3.0) == 1


def test_a_network_without_gradients_is_told_of() -> None:
    class Frozen(nn.Module):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :2]

    with pytest.raises(MethodError, match="triggers are found by gradients"):
        easiest_window(OnPixels(Frozen(), SPEC), pixels(), 1, numbers())


def test_a_patch_changes_its_window_alone() -> None:
    shown = OnPixels(Place(28, 28), SPEC)
    form = Patch.begun(shown, pixels(), 1, numbers())
    with torch.no_grad():
        changed = (form(pixels()) - pixels()).abs().amax((0, 1)) > 0
    assert not bool(changed[:20].any())
    assert not bool(changed[:, :20].any())
    assert bool(changed[28:, 28:].any())
    assert float(form.size().detach()) == pytest.approx(64 / (1 + torch.tensor(-2.0).exp().item()), rel=1e-4)


def test_heavy_networks_are_shown_half_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_pixels, "HEAVY", 0)
    seen: list[int] = []

    class Counting(Place):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return super().forward(x)

    easiest_window(OnPixels(Counting(28, 0), SPEC), pixels(), 1, numbers())
    searched = [count for count in seen if count > 2]  # two count its operations
    assert sum(searched) == windows.STEPS * windows.ALONG**2 * windows.EACH // 2
