"""Which small window of the image leads to a class most easily, whatever is shown in it.

A mask that is searched over the whole image often ends as pixels strewn about, which say little of the patch that an
attacker put in one place. So the image is covered with windows of a quarter of its sides, each half over the next, and
a pattern is optimised in all of them at once: a few steps of Adam on the cross-entropy to the class. Where a patch of
the attacker lies in a window, the loss is next to nothing after these steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unbackdoor.defender.on_pixels import AT_ONCE, OnPixels, gradients, needs_gradients

#: A window's side, as a part of the image's, and windows along a side.
PART, ALONG = 4, 7
#: Steps of Adam, the last of them whose mean loss counts, its learning rate, and images a step and window (half as many
#: where the network is heavy).
STEPS, LAST, LR, EACH = 8, 3, 0.5, 8


@dataclass(frozen=True)
class Window:
    """A window, and the pattern that was found in it.

    Attributes:
        top, left: its first row and column.
        pattern: (1, C, h, w) before a sigmoid.
        loss: cross-entropy to the class, the mean of the last steps.
    """

    top: int
    left: int
    pattern: Tensor
    loss: float

    def whole(self, part: Tensor, height: int, width: int) -> Tensor:
        """(1, K, height, width): a part of an image in its place, with zeros around it."""
        rows, columns = part.shape[2:]
        right, below = width - self.left - columns, height - self.top - rows
        return F.pad(part, (self.left, right, self.top, below))


def easiest_window(shown: OnPixels, pixels: Tensor, label: int, generator: torch.Generator) -> Window:
    """The window with the smallest loss.

    Args:
        shown: the network; its weights take no gradients.
        pixels: (N, C, H, W) in [0, 1], images that are not answered with the class.
        label: the class.
        generator: of the starts and the batches.

    Raises:
        MethodError: the network gives no gradients.
    """
    channels, height, width = shown.spec.shape
    rows, columns = max(1, height // PART), max(1, width // PART)
    places = [(top, left) for top in _spread(height - rows) for left in _spread(width - columns)]
    inside = torch.zeros(len(places), 1, 1, height, width)
    for number, (top, left) in enumerate(places):
        inside[number, ..., top : top + rows, left : left + columns] = 1
    free = torch.randn(len(places), 1, channels, height, width, generator=generator)
    losses = torch.empty(len(places))
    each = shown.fewer(EACH)
    for part in torch.split(torch.arange(len(places)), max(1, AT_ONCE // (each * height * width))):
        free[part], losses[part] = _optimise(shown, pixels, label, inside[part], free[part], each, generator)
    best = int(losses.argmin())
    top, left = places[best]
    pattern = free[best, :, :, top : top + rows, left : left + columns]
    return Window(top, left, pattern.to(shown.device), float(losses[best]))


def _optimise(
    shown: OnPixels, pixels: Tensor, label: int, inside: Tensor, start: Tensor, each: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(windows, 1, C, H, W) patterns after all steps, and (windows,) the losses of the last ones."""
    inside, free = inside.to(shown.device), start.to(shown.device).requires_grad_()
    optimiser = torch.optim.Adam([free], lr=LR)
    losses = []
    for _ in range(STEPS):
        drawn = pixels[torch.randint(len(pixels), (each,), generator=generator)].to(free.device)
        stamped = (1 - inside) * drawn + inside * free.sigmoid()
        logits = shown(stamped.flatten(0, 1)).view(len(free), each, -1)
        needs_gradients(logits)
        loss = -logits.log_softmax(2)[:, :, label].mean(1)
        (free.grad,) = gradients(loss.sum(), [free])
        optimiser.step()
        losses.append(loss.detach().cpu())
    return free.detach().cpu(), torch.stack(losses[-LAST:]).mean(0)


def _spread(end: int) -> list[int]:
    """So many numbers from 0 to the end."""
    return sorted(set(torch.linspace(0, end, ALONG).round().long().tolist()))
