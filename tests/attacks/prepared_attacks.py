"""Every registered attack with its trigger made, on random images and in little time."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from unbackdoor.attacks import ATTACKS, Attack, TrainingControl, parse_attack
from unbackdoor.data import DATASETS, LabelledImages

#: Settings with which a slow attack is prepared in no time; any other attack is tested as it comes.
QUICK = {"ssba": "ssba:steps=2,width=2,bits=4", "lc": "lc:steps=2"}
#: Attacks whose trigger comes out of a network: its sums depend on the batch's size in their last bits.
BY_NETWORK = {"ssba", "inputaware"}
NAMES = list(ATTACKS)


def data_of(size: int = 32, n: int = 20, *, seed: int = 1) -> LabelledImages:
    """Random pixels; classes 0 to 9 in turn."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)
    return LabelledImages(images, torch.arange(n) % 10, replace(DATASETS["cifar10"], size=size))


class Brightness(nn.Module):
    """A classifier of ten classes: class 0 is bright red, the others share what is left."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        red = x[:, 0].mean((1, 2)) * self.scale
        return torch.cat([red[:, None], torch.zeros(len(x), self.classes - 1)], dim=1)


def arm(name: str, size: int = 32, *, seed: int = 0, target: int = 0) -> Attack:
    """An attack as it is when images are stamped."""
    attack = parse_attack(QUICK.get(name, name), target=target)
    data = data_of(size)
    prepared = attack.prepare(data, seed=seed, classifier=Brightness() if attack.needs_classifier else None)
    if isinstance(prepared, TrainingControl):
        session = prepared.session(rate=0.5, spec=data.spec, seed=seed, epochs=1, device=torch.device("cpu"))
        return session.result()
    return prepared


def assert_same_stamp(name: str, one: Tensor, other: Tensor) -> None:
    """Equal; from a network, up to one level in one pixel of a thousand."""
    difference = (one.int() - other.int()).abs()
    if name in BY_NETWORK:
        assert int(difference.max()) <= 1
        assert float((difference > 0).float().mean()) < 1e-3
    else:
        assert int(difference.max()) == 0
