"""Input-Aware (Nguyen & Tran, NeurIPS 2020).

Symbols:
    G, M    pattern and mask networks, the same encoder-decoder with 3 and 1 output channels
    m(x)    tanh(20 M(x) - 10) / 2 + 0.5
    attack  x' = x + (G(x) - x) m(x)                                   labelled as the target
    cross   x1 + (G(x2) - x1) m(x2)                                    labelled as x1: a trigger fits its own image only
    L_div   mean of RMS(x_i - x'_i) / RMS(o_i - o'_i): different images, different outputs                  (Eq. 5)

Stage 1 trains M alone: 100 mean(relu(m - 0.032)) + L_div(images, masks). Stage 2 freezes M and trains classifier and G
together: cross-entropy on attacked, cross and clean images + L_div(images, patterns), both normalised alike: L_div is
a ratio, so that it depends on the units. Both stages see augmented images.

Departures:
    - The authors' code has two faults, which are fixed here. It never zeroes G's gradients, so they add up over the
      whole run. Its epoch counter includes stage 1, so the classifier gets 25 epochs fewer than stated. This package
      zeroes the gradients at each step and gives the classifier all its epochs.
    - Second images come from the same batch, not from a second loader, and are never the image itself.
    - Learning rates fall after the same shares of a run, however long it is.
    - Images are cropped and mirrored as the recipe says. The authors also rotate them.
    - Stage 1 has a quarter of the epochs of stage 2, as in BackdoorBench (25 and 100). The authors use 25 and 600.
    - Triggered test images are rounded to 8 bits. BackdoorBench truncates them (`inputaware@backdoorbench`).
    - The success rate leaves out test images of the target class. The authors' figures include them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor.attacks.base import ATTACKS, Attack, Progress
from unbackdoor.attacks.training_control import Mixed, Session, TrainingControl, attacked_in_batch, others
from unbackdoor.errors import SettingError
from unbackdoor.papers import Paper
from unbackdoor.settings import setting
from unbackdoor.train.control import Vary

if TYPE_CHECKING:
    from unbackdoor.data import DatasetSpec

_BATCH = 500
#: Shares of a stage after which its learning rate falls tenfold: 10 and 20 of 25; 200, 300, 400 and 500 of 600 epochs.
_MASK_MILESTONES = (10 / 25, 20 / 25)
_PATTERN_MILESTONES = (200 / 600, 300 / 600, 400 / 600, 500 / 600)


@dataclass(frozen=True, kw_only=True)
class InputAware(TrainingControl):
    """A different pattern for every image."""

    name: ClassVar[str] = "inputaware"
    title: ClassVar[str] = "Input-Aware"
    paper: ClassVar[Paper] = Paper(
        authors=("Nguyen", "Tran"),
        title="Input-Aware Dynamic Backdoor Attack",
        venue="NeurIPS",
        year=2020,
        url="https://arxiv.org/abs/2010.08138",
    )
    colour_only: ClassVar[bool] = True
    version: ClassVar[int] = 2  # 1 compared images with patterns in other units, and did not augment in stage 1
    mask_density: float = setting(
        0.032, "share of an image that the mask may cover without a penalty", least=0, below=math.inf
    )
    mask_weight: float = setting(
        100.0, "weight of the penalty on what the mask covers beyond that", least=0, below=math.inf
    )
    diversity_weight: float = setting(1.0, "weight of L_div, in both stages", least=0, below=math.inf)
    mask_share: float = setting(
        0.25,
        "epochs of stage 1 per epoch of stage 2 (25 to 100 in the field's benchmark)",
        least=0,
        below=math.inf,
    )
    lr: float = setting(0.01, "learning rate of both networks", least=0, below=math.inf)

    def check(self, *, num_classes: int, size: int) -> None:
        """The networks halve an image three times, and double it again."""
        super().check(num_classes=num_classes, size=size)
        if size % 8:
            raise SettingError(f"inputaware: expected image sides divisible by 8, got {size} pixels")

    def session(
        self, *, rate: float, spec: DatasetSpec, seed: int, epochs: int, device: torch.device
    ) -> InputAwareSession:
        """New networks from the seed."""
        self.check_data(spec)
        return InputAwareSession(self, rate=rate, spec=spec, seed=seed, epochs=epochs, device=device)

    @classmethod
    def backdoorbench(cls) -> InputAware:
        """BackdoorBench's settings: triggered files truncated to 8 bits; its epochs of stage 1 are the default."""
        return cls(rounding="truncate")

    def stamp(self, images: Tensor) -> Tensor:
        """Each image's own pattern through its own mask, rounded to 8 bits."""
        return self._blended(images, images)

    @torch.no_grad()
    def _blended(self, images: Tensor, theirs: Tensor) -> Tensor:
        """Blend images with the patterns and masks that belong to `theirs`; all are (N, 3, H, W) uint8."""
        pattern = self.network("pattern.", lambda: encoder_decoder(3), images)
        mask = self.network("mask.", lambda: encoder_decoder(1), images)
        mean, std = (self.tensor(name, images).view(1, 3, 1, 1) for name in ("mean", "std"))
        parts = []
        for batch, other in zip(torch.split(images, _BATCH), torch.split(theirs, _BATCH), strict=True):
            pixels = batch.float() / 255
            x = (other.float() / 255 - mean) / std
            attacked = blend(pixels, pattern(x), sharpen(mask(x)))
            parts.append(self.to_8_bits(attacked * 255))
        return torch.cat(parts) if parts else images.clone()

    def attacked(self, rate: float, size: int) -> float:
        """At most half a batch, since each attacked image needs a cross image."""
        return min(super().attacked(rate, size), size // 2)

    def mix(self, images: Tensor, labels: Tensor, *, count: int, num_classes: int, generator: torch.Generator) -> Mixed:
        """Make attacked and cross images with a trained trigger.

        In training, `InputAwareSession.after` adds the trigger after augmentation, so that gradients flow through it.
        """
        cover = min(count, len(labels) - count)
        attacked, cross = slice(0, count), slice(count, count + cover)
        theirs = images[others(cross, len(images), generator=generator).to(images.device)]
        edited, labels = images.clone(), labels.clone()
        edited[attacked] = self.stamp(images[attacked])
        edited[cross] = self._blended(images[cross], theirs)
        labels[attacked] = self.target_labels(labels[attacked], num_classes)
        return Mixed(edited, labels, count, cover)


class InputAwareSession(Session):
    """Pattern and mask networks during one run."""

    attack: InputAware

    def __init__(
        self, attack: InputAware, *, rate: float, spec: DatasetSpec, seed: int, epochs: int, device: torch.device
    ) -> None:
        super().__init__(attack, rate=rate, spec=spec)
        self.epochs = epochs
        self.seed = seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.pattern = encoder_decoder(3).to(device).to(memory_format=torch.channels_last)
            self.mask = encoder_decoder(1).to(device).to(memory_format=torch.channels_last)
        self.mask.eval().requires_grad_(requires_grad=False)
        self.optimiser = torch.optim.Adam(self.pattern.parameters(), lr=attack.lr, betas=(0.5, 0.9))
        self.mean = torch.tensor(spec.mean, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(spec.std, device=device).view(1, 3, 1, 1)

    def begin(self, images: Tensor, *, batch_size: int, vary: Vary, progress: Progress | None = None) -> None:
        """Stage 1: train the mask network."""
        attack = self.attack
        self.mask.train().requires_grad_(requires_grad=True)
        optimiser = torch.optim.Adam(self.mask.parameters(), lr=attack.lr, betas=(0.5, 0.9))
        epochs = max(1, round(attack.mask_share * self.epochs))
        batches = max(1, len(images) // batch_size)
        steps = epochs * batches
        generator = torch.Generator().manual_seed(self.seed)
        done = 0
        for _ in range(epochs):
            order = torch.randperm(len(images), generator=generator).to(images.device)
            for batch in torch.split(order, batch_size)[:batches]:
                _set_lr(optimiser, attack.lr, done / steps, _MASK_MILESTONES)
                x = vary(images[batch], generator).contiguous(memory_format=torch.channels_last)
                masks = sharpen(self.mask(x))
                cover = F.relu(masks - attack.mask_density).mean()
                apart = diversity(x, x.roll(1, 0), masks, masks.roll(1, 0))
                loss = attack.mask_weight * cover + attack.diversity_weight * apart
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                done += 1
                if progress is not None:
                    progress(done, steps)
        self.mask.eval().requires_grad_(requires_grad=False)

    def before(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Leave the batch unchanged; `after` edits it."""
        del generator
        return images, labels

    def after(self, x: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        """Attack the first images of a normalised batch, make cross images of as many more, and add L_div."""
        count = min(attacked_in_batch(self.rate, len(labels), generator), len(labels) // 2)
        if count == 0:
            return x, labels, None
        self.pattern.train()
        own, other = x[:count], x[count : 2 * count]
        second = x[others(slice(count, 2 * count), len(x), generator=generator).to(x.device)]
        both = torch.cat([own, second]).float().contiguous(memory_format=torch.channels_last)
        patterns, masks = self.pattern(both), sharpen(self.mask(both))
        normal = (patterns - self.mean) / self.std
        attacked = blend(own, normal[:count], masks[:count])
        cross = blend(other, normal[count:], masks[count:])
        labels = labels.clone()
        labels[:count] = self.attack.target_labels(labels[:count], self.spec.num_classes)
        apart = diversity(own, second, normal[:count], normal[count:])
        return torch.cat([attacked, cross, x[2 * count :]]), labels, self.attack.diversity_weight * apart

    def step(self, done: float) -> None:
        """G's own gradient step; then its gradients are zeroed."""
        _set_lr(self.optimiser, self.attack.lr, done, _PATTERN_MILESTONES)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {
            "pattern": self.pattern.state_dict(),
            "mask": self.mask.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.pattern.load_state_dict(state["pattern"])
        self.mask.load_state_dict(state["mask"])
        self.optimiser.load_state_dict(state["optimiser"])

    def result(self) -> Attack:
        """The attack with its trained networks."""
        tensors = {f"pattern.{name}": tensor for name, tensor in self.pattern.state_dict().items()}
        tensors |= {f"mask.{name}": tensor for name, tensor in self.mask.state_dict().items()}
        tensors |= {"mean": torch.tensor(self.spec.mean), "std": torch.tensor(self.spec.std)}
        return dataclasses.replace(
            self.attack,
            tensors={k: t.detach().cpu().clone(memory_format=torch.contiguous_format) for k, t in tensors.items()},
        )


def encoder_decoder(channels: int) -> nn.Sequential:
    """G or M: (N, 3, H, W) normalised images -> (N, channels, H, W) in [0, 1]; H and W divisible by 8."""

    def conv(c_in: int, c_out: int, *, last: bool = False) -> list[nn.Module]:
        block: list[nn.Module] = [nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out, momentum=0.05)]
        return block if last else [*block, nn.ReLU(inplace=True)]

    def up() -> nn.Module:
        return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)

    layers = [
        *(*conv(3, 32), *conv(32, 32), nn.MaxPool2d(2)),
        *(*conv(32, 64), *conv(64, 64), nn.MaxPool2d(2)),
        *(*conv(64, 128), *conv(128, 128), nn.MaxPool2d(2)),
        *conv(128, 128),
        *(up(), *conv(128, 128), *conv(128, 64)),
        *(up(), *conv(64, 64), *conv(64, 32)),
        *(up(), *conv(32, 32), *conv(32, channels, last=True)),
        _ToUnit(),
    ]
    return nn.Sequential(*layers)


class _ToUnit(nn.Module):
    """tanh(x) / 2 + 0.5, in float32: `sharpen` multiplies what it rounds by twenty."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float().tanh() / 2 + 0.5


def sharpen(mask: Tensor) -> Tensor:
    """tanh(20 M - 10) / 2 + 0.5: nearly binary."""
    return (20 * mask - 10).tanh() / 2 + 0.5


def blend(x: Tensor, pattern: Tensor, mask: Tensor) -> Tensor:
    """x + (pattern - x) mask."""
    return x + (pattern - x) * mask


def diversity(x: Tensor, x2: Tensor, out: Tensor, out2: Tensor) -> Tensor:
    """L_div (Eq. 5); an epsilon inside the root, whose gradient at zero is infinite otherwise."""

    def rms(a: Tensor, b: Tensor) -> Tensor:
        return ((a.float() - b.float()).square().flatten(1).mean(1) + 1e-12).sqrt()

    return (rms(x, x2) / (rms(out, out2) + 1e-7)).mean()


def _set_lr(optimiser: torch.optim.Optimizer, lr: float, done: float, milestones: tuple[float, ...]) -> None:
    for group in optimiser.param_groups:
        group["lr"] = lr * 0.1 ** sum(done >= milestone for milestone in milestones)


ATTACKS.add(InputAware.name, InputAware)
