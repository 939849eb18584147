"""Fixtures that every test may use."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start, too

import hypothesis
import pytest
import torch
from torch import Tensor, nn

from layer_zoo import calibrate
from unbackdoor.defender import meter, surrogates

hypothesis.settings.register_profile("unbackdoor", deadline=None)  # a slow machine is no failure
hypothesis.settings.load_profile("unbackdoor")
torch.set_num_threads(1)  # each pytest-xdist worker keeps to one core


class TinyNet(nn.Module):
    """Two convolutions with a norm each, average pooling, one Linear: small enough to work out by hand."""

    def __init__(self, *, channels: int = 4, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * channels)
        self.fc = nn.Linear(2 * channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


@pytest.fixture
def generator() -> torch.Generator:
    """A generator in a fixed state."""
    return torch.Generator().manual_seed(20_260_101)


@pytest.fixture
def tiny_net() -> Callable[..., TinyNet]:
    """Builds a `TinyNet` in eval mode: the same weights for the same seed, norms as training leaves them."""

    def build(seed: int = 0, **options: int) -> TinyNet:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = TinyNet(**options)
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.normal_(module.bias, std=0.1)
                    nn.init.uniform_(module.running_var, 0.5, 1.5)
            calibrate(model, torch.rand(16, 3, 8, 8), keep_var=True)
        return model.eval()

    return build


@pytest.fixture(scope="session", autouse=True)
def _no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded images are kept in a folder that is gone after the tests, by the processes that tests start, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNBACKDOOR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_meter_unasked() -> Iterator[None]:
    """A repair predicts no loss of accuracy, which takes seconds: to the limit of a test's machine every network is
    large. Tests of it take `meter_unasked`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meter, "LONGEST", 0.0)
        yield


@pytest.fixture
def meter_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A repair predicts the loss of accuracy, from few images."""
    monkeypatch.setattr(meter, "LONGEST", math.inf)
    monkeypatch.setattr(meter, "COUNT", 20)
    monkeypatch.setitem(surrogates.impressions.__kwdefaults__, "steps", 2)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets, or a skip."""
    checkout = Path(__file__).parents[1]
    for place in (os.environ.get("UNBACKDOOR_DATA"), checkout.parent / "shared" / "data"):
        if place and Path(place).is_dir():
            return Path(place)
    pytest.skip("no real data: UNBACKDOOR_DATA is not set, and there is no ../shared/data beside the checkout")
