"""Small networks whose names and order propose a pair for every norm, rightly or wrongly, and their training.

Each kind says which of its proposed pairs are right. `python tests/graph/pairing_table.py` trains them for a few dozen
steps and counts which pairs `graph/evidence.py` takes for right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Act = Callable[[Tensor], Tensor]
WIDTH = 32


class Unit(nn.Module):
    """A convolution and a norm, registered in this order, called in any: c, b, a(ctivation), m(ax), (a)v(erage)."""

    def __init__(self, c_in: int, c_out: int, order: str, act: Act, *, bias: bool, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, padding=1, bias=bias)
        self.bn = norm(c_in if order[0] == "b" else c_out)
        pools: dict[str, Act] = {"m": lambda x: F.max_pool2d(x, 2, 1), "v": lambda x: F.avg_pool2d(x, 2, 1)}
        self.steps = [{"c": self.conv, "b": self.bn, "a": act, **pools}[step] for step in order]

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


class Chain(nn.Module):
    """A stem and five units."""

    def __init__(
        self, order: str, act: Act = F.relu, *, bias: bool = False, norm: Callable[[int], nn.Module] = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        wide = WIDTH if order[0] == "b" else 2 * WIDTH  # a norm of the input has as many channels as the output
        widths = [WIDTH, WIDTH, wide, wide, wide]
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        pairs = zip([WIDTH, *widths], widths, strict=False)
        self.layers = nn.ModuleList(Unit(i, o, order, act, bias=bias, norm=norm) for i, o in pairs)
        self.fc = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for at, layer in enumerate(self.layers):
            x = layer(F.avg_pool2d(x, 2) if at in (2, 4) else x)
        return self.fc(x.mean((2, 3)))


class Block(nn.Module):
    """Two convolutions, two norms and a shortcut, registered as torchvision does and called in one of four ways."""

    def __init__(self, width: int, style: str) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.style = style

    def forward(self, x: Tensor) -> Tensor:
        if self.style == "pre":
            return x + self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        if self.style == "sum":
            return F.relu(self.bn2(x + self.conv2(F.relu(self.bn1(self.conv1(x))))))
        if self.style == "swapped":
            return F.relu(x + self.bn1(self.conv2(F.relu(self.bn2(self.conv1(x))))))
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Residual(nn.Module):
    """Four blocks."""

    def __init__(self, style: str, width: int = WIDTH) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.layers = nn.Sequential(*(Block(width, style) for _ in range(4)))
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.layers(F.relu(self.stem(x)))).mean((2, 3)))


class Single(nn.Module):
    """Units of one convolution with a shortcut: x + conv(relu(bn(x))), depthwise or not, or relu(bn(x + conv(x)))."""

    def __init__(self, style: str, *, depthwise: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        groups = WIDTH if depthwise else 1
        self.convs = nn.ModuleList(
            nn.ModuleDict(
                {"conv": nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=groups, bias=False), "bn": nn.BatchNorm2d(WIDTH)}
            )
            for _ in range(5)
        )
        self.fc = nn.Linear(WIDTH, 10)
        self.style = style

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for unit in self.convs:
            conv, bn = unit["conv"], unit["bn"]
            x = x + conv(F.relu(bn(x))) if self.style == "pre" else F.relu(bn(x + conv(x)))
        return self.fc(F.relu(x).mean((2, 3)))


class Mobile(nn.Module):
    """Inverted residuals: 1x1 up, depthwise 3x3, 1x1 down, a norm behind each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU6())
        blocks = []
        for _ in range(4):
            steps: list[nn.Module] = []
            for i, o, k, groups in (
                (WIDTH, 4 * WIDTH, 1, 1),
                (4 * WIDTH, 4 * WIDTH, 3, 4 * WIDTH),
                (4 * WIDTH, WIDTH, 1, 1),
            ):
                steps += [nn.Conv2d(i, o, k, padding=k // 2, groups=groups, bias=False), nn.BatchNorm2d(o), nn.ReLU6()]
            blocks.append(nn.Sequential(*steps[:-1]))
        self.blocks = nn.ModuleList(blocks)
        self.fc = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.fc(x.mean((2, 3)))


class Mixer(nn.Module):
    """ConvMixer: an activation between every convolution and its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 2, 2)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "conv1": nn.Conv2d(WIDTH, WIDTH, 5, padding=2, groups=WIDTH),
                    "bn1": nn.BatchNorm2d(WIDTH),
                    "conv2": nn.Conv2d(WIDTH, WIDTH, 1),
                    "bn2": nn.BatchNorm2d(WIDTH),
                }
            )
            for _ in range(4)
        )
        self.fc = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.stem(x))
        for block in self.blocks:
            x = x + block["bn1"](F.gelu(block["conv1"](x)))
            x = block["bn2"](F.gelu(block["conv2"](x)))
        return self.fc(x.mean((2, 3)))


@dataclass(frozen=True)
class Kind:
    """A kind of network.

    Attributes:
        build: makes one.
        right: whether the pair that names and order propose for a layer is right.
    """

    build: Callable[[], nn.Module]
    right: Callable[[str], bool]


def _all(_layer: str) -> bool:
    return True


def _none(_layer: str) -> bool:
    return False


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.1)


def _instance_norm(channels: int) -> nn.Module:
    return nn.InstanceNorm2d(channels, affine=True, track_running_stats=True)


KINDS = {
    "conv, norm, ReLU": Kind(lambda: Chain("cba"), _all),
    "the same with biases": Kind(lambda: Chain("cba", bias=True), _all),
    "conv, norm, SiLU": Kind(lambda: Chain("cba", F.silu), _all),
    "conv, norm, GELU": Kind(lambda: Chain("cba", F.gelu), _all),
    "conv, norm, leaky ReLU": Kind(lambda: Chain("cba", _leaky), _all),
    "conv, norm, tanh": Kind(lambda: Chain("cba", torch.tanh), _all),
    "conv, average pooling, norm, ReLU": Kind(lambda: Chain("cvba"), _all),
    "conv, InstanceNorm, ReLU": Kind(lambda: Chain("cba", norm=_instance_norm), _all),
    "ResNet": Kind(lambda: Residual("post"), _all),
    "ResNet, 16 channels": Kind(lambda: Residual("post", 16), _all),
    "MobileNet": Kind(Mobile, _all),
    "conv, ReLU, norm": Kind(lambda: Chain("cab"), _none),
    "conv with bias, ReLU, norm": Kind(lambda: Chain("cab", bias=True), _none),
    "conv, SiLU, norm": Kind(lambda: Chain("cab", F.silu), _none),
    "conv, GELU, norm": Kind(lambda: Chain("cab", F.gelu), _none),
    "conv, leaky ReLU, norm": Kind(lambda: Chain("cab", _leaky), _none),
    "conv, tanh, norm": Kind(lambda: Chain("cab", torch.tanh), _none),
    "conv, max pooling, norm": Kind(lambda: Chain("cmba"), _none),
    "norm, ReLU, conv (registered first)": Kind(lambda: Chain("bac"), _none),
    "norm, SiLU, conv (registered first)": Kind(lambda: Chain("bac", F.silu), _none),
    "pre-activation ResNet, conv first": Kind(lambda: Residual("pre"), _none),
    "the same, 16 channels": Kind(lambda: Residual("pre", 16), _none),
    "x + conv(relu(norm(x))), conv first": Kind(lambda: Single("pre"), _none),
    "the same, depthwise": Kind(lambda: Single("pre", depthwise=True), _none),
    "ResNet, second norm of the sum": Kind(lambda: Residual("sum"), lambda layer: layer.endswith("conv1")),
    "norm(x + conv(x))": Kind(lambda: Single("sum"), _none),
    "ResNet, norms' names swapped": Kind(lambda: Residual("swapped"), _none),
    "ConvMixer": Kind(Mixer, _none),
}


def train(kind: str, seed: int, steps: int = 40) -> nn.Module:
    """A network of a kind, trained for a moment on coloured blots of ten classes; one CPU thread, a few seconds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = KINDS[kind].build().train()
        prototypes = F.interpolate(torch.rand(10, 3, 4, 4), size=16, mode="bilinear")
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
        for _ in range(steps):
            labels = torch.randint(10, (64,))
            noise = F.interpolate(torch.randn(64, 3, 8, 8), size=16, mode="bilinear")
            images = prototypes[labels] + 0.4 * noise + 0.1 * torch.randn(64, 3, 16, 16)
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 2.0)
            optimizer.step()
    return model.eval()
