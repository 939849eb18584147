"""Small networks of six classes, for 3x8x8 images, that may have a planted way into class 4."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unbackdoor.inputs import Normalisation

PLAIN = Normalisation(mean=(0.0,), std=(1.0,))
EXAMPLE = torch.zeros(2, 3, 8, 8)
CLASSES = 6


class Toy(nn.Module):
    """Six classes through three layers; forty channels, which fire on no image, may speak for class 4."""

    def __init__(self, *, channel: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.second, self.norm2 = nn.Conv2d(12, 12, 1), nn.BatchNorm2d(12)
        self.third, self.norm3 = nn.Conv2d(12, 52, 1), nn.BatchNorm2d(52)
        self.fc = nn.Linear(52, CLASSES)
        with torch.no_grad():
            self.third.weight[12:], self.third.bias[12:], self.norm3.weight[12:], self.norm3.bias[12:] = 0, 0, 2, -3
            self.fc.weight[:, 12:] = 0
            self.fc.weight[4, 12:] = channel
            self.fc.weight[:, :12] *= 30
            self.fc.bias -= self.eval()(torch.rand(64, 3, 8, 8)).mean(0)  # so that no class has all the answers

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm2(self.second(torch.relu(self.norm(self.first(x))))))
        return self.fc(torch.relu(self.norm3(self.third(x))).mean((2, 3)))


class Stripes(nn.Module):
    """Each class likes stripes of its own width and direction; four pixels of the corner may speak for class 4."""

    def __init__(self, *, corner: float = 0.0) -> None:
        super().__init__()
        places = torch.arange(8)
        stripes = [1 - 2 * ((places & bit) > 0).float() for bit in (1, 2, 4)]
        across, along = [line.view(8, 1).expand(8, 8) for line in stripes], [line.expand(8, 8) for line in stripes]
        self.liked = nn.Parameter(20 * torch.stack([*across, *along]))
        self.corner = corner

    def forward(self, x: Tensor) -> Tensor:
        bright = x[:, :, -2:, -2:].mean((1, 2, 3)) ** 8
        logits = (x.mean(1)[:, None] * self.liked).mean((2, 3))
        return logits + self.corner * bright[:, None] * nn.functional.one_hot(torch.tensor(4), CLASSES)


class Deaf(Stripes):
    """Answers class 0 whatever it sees."""

    def forward(self, x: Tensor) -> Tensor:
        return 0 * super().forward(x) + torch.tensor([1e3, 0, 0, 0, 0, 0])
