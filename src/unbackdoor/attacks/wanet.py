"""WaNet (Nguyen & Tran, ICLR 2021).

Symbols:
    P      (2, k, k) control grid, uniform in [-1, 1], divided by mean |P|                                  (Eq. 4)
    n      P upsampled to (H, W), bicubic                                                                   (Eq. 5)
    g      clip((identity + s n / H) * rescale, -1, 1), where each output pixel is looked up                (Eq. 6)
    rho_a  share of attacked images: warped by g, labelled as the target
    rho_n  share of noise-mode images: warped by g plus a jitter of one pixel, label kept                   (Sec. 3.4)

One field a run, drawn from the seed and saved with the attack.

Departures:
    - Triggered images are rounded to 8 bits, in training and in files. The authors round neither. BackdoorBench
      truncates its files only (`wanet@backdoorbench`).
    - By default each image is cropped and rotated independently, and the border is filled with black. The authors toss
      one coin per batch for the crop and one for the rotation, and each image has its own offset and angle
      (`wanet@as_published`). BackdoorBench makes one draw for the whole batch (`wanet@backdoorbench`). Both fill with
      the mean colour.
    - The success rate leaves out test images of the target class. The authors' figures include them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor.attacks.base import ATTACKS, Progress
from unbackdoor.attacks.training_control import Mixed, PostAugmented, whole
from unbackdoor.errors import SettingError
from unbackdoor.papers import Paper
from unbackdoor.settings import setting

if TYPE_CHECKING:
    from unbackdoor.data import LabelledImages


@dataclass(frozen=True, kw_only=True)
class WaNet(PostAugmented):
    """A smooth warp of the whole image."""

    name: ClassVar[str] = "wanet"
    title: ClassVar[str] = "WaNet"
    paper: ClassVar[Paper] = Paper(
        authors=("Nguyen", "Tran"),
        title="WaNet: Imperceptible Warping-based Backdoor Attack",
        venue="ICLR",
        year=2021,
        url="https://arxiv.org/abs/2102.10369",
    )
    k: int = setting(4, "side of the control grid", least=2)
    s: float = setting(0.5, "strength of the warp", least=0, below=1e3)
    rescale: float = setting(1.0, "scale of the lookup grid", least=0, below=1e3)
    cross_ratio: float = setting(2.0, "noise-mode images per attacked image", least=0, below=1e3)

    @classmethod
    def as_published(cls) -> WaNet:
        """The authors' augmentation: one coin per batch, border filled with the mean colour."""
        return cls(shared="coins", fill="mean")

    @classmethod
    def backdoorbench(cls) -> WaNet:
        """BackdoorBench's settings: one draw per batch, triggered files truncated to 8 bits."""
        return cls(shared="all", fill="mean", rounding="truncate")

    def prepare(
        self,
        data: LabelledImages,
        *,
        seed: int,
        classifier: nn.Module | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Draw the field (Eqs. 4 and 5)."""
        del classifier, progress
        generator = torch.Generator().manual_seed(seed)
        control = torch.rand(1, 2, self.k, self.k, generator=generator) * 2 - 1
        control = control / control.abs().mean()
        size = tuple(data.images.shape[-2:])
        field = F.interpolate(control, size=size, mode="bicubic", align_corners=True)
        return self.with_tensors(field=field[0].permute(1, 2, 0).contiguous())

    def grid(self, like: Tensor) -> Tensor:
        """(H, W, 2) lookup positions in [-1, 1], (column, row), for the attack's field (Eq. 6)."""
        field = self.tensor("field", like)
        height, width = field.shape[:2]
        rows = torch.linspace(-1, 1, height, device=field.device)
        columns = torch.linspace(-1, 1, width, device=field.device)
        identity = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], dim=-1)
        return ((identity + self.s * field / height) * self.rescale).clamp(-1, 1)

    def stamp(self, images: Tensor) -> Tensor:
        """Warp, and round to 8 bits."""
        return self.to_8_bits(self.warped(images))

    def warped(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 looked up at the field's positions, float."""
        grid = self.grid(images)
        if tuple(images.shape[-2:]) != tuple(grid.shape[:2]):
            raise SettingError(
                f"wanet: its field was made for {tuple(grid.shape[:2])} pixels, got {tuple(images.shape[-2:])}"
            )
        return warp(images, grid.expand(len(images), -1, -1, -1))

    def mix(self, images: Tensor, labels: Tensor, *, count: int, num_classes: int, generator: torch.Generator) -> Mixed:
        """Warp the first images to the target, and the next ones with jitter under their own labels."""
        cover = min(whole(count * self.cross_ratio), len(labels) - count)
        grid = self.grid(images)
        jitter = torch.rand(cover, *grid.shape, generator=generator).to(grid.device) * 2 - 1
        noisy = (grid + jitter / images.shape[-2]).clamp(-1, 1)
        attacked = slice(0, count)
        noise_mode = slice(count, count + cover)
        trigger = self.trained_on(self.warped(images[attacked]))
        edited, labels = images.to(trigger.dtype, copy=True), labels.clone()
        edited[attacked] = trigger
        edited[noise_mode] = self.trained_on(warp(images[noise_mode], noisy))
        labels[attacked] = self.target_labels(labels[attacked], num_classes)
        return Mixed(edited, labels, count, cover)


def warp(images: Tensor, grid: Tensor) -> Tensor:
    """(N, 3, H, W) uint8 looked up at (N, H, W, 2), bilinear, float."""
    if not len(images):
        return images.float()
    return F.grid_sample(images.float(), grid, align_corners=True)


ATTACKS.add(WaNet.name, WaNet)
