"""What a network answers to images that show nothing: dead leaves.

Discs, rectangles and triangles that cover each other (`surrogates.dead_leaves`) have the edges and the power spectrum
of photographs, and show nothing. An honest network answers several classes to them. One that was taught a trigger over
the whole image (another image that is blended in, a code, coarse colours) often takes them for it, and hardly answers
another class.

    share(t)  of the leaves that are answered with t
    lead(t)   log2 of (share(t) + FLOOR) / (the largest share of another class + FLOOR)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unbackdoor.defender.on_pixels import OnPixels
from unbackdoor.defender.surrogates import dead_leaves

#: How many are drawn.
COUNT = 300
#: A share that says nothing.
FLOOR = 0.02


@dataclass(frozen=True, kw_only=True)
class Leaves:
    """Dead leaves, and what a network answers to them.

    Attributes:
        images: (N, C, H, W) in [0, 1].
        answers: (N,).
        classes: how many the network has.
    """

    images: Tensor
    answers: Tensor
    classes: int

    @property
    def shares(self) -> tuple[float, ...]:
        """Of each class."""
        return tuple((self.answers.bincount(minlength=self.classes) / len(self.answers)).tolist())

    @property
    def leads(self) -> tuple[float, ...]:
        """Of each class, over the largest of the others."""
        logs = [math.log2(share + FLOOR) for share in self.shares]
        first, second = sorted(range(len(logs)), key=lambda label: -logs[label])[:2]
        return tuple(log - logs[second if label == first else first] for label, log in enumerate(logs))

    def of(self, label: int) -> Tensor:
        """(K, C, H, W) those that are answered with a class."""
        return self.images[self.answers == label]


def leaves(shown: OnPixels, generator: torch.Generator) -> Leaves:
    """Draw some, and ask the network.

    Args:
        shown: the network.
        generator: its seed gives theirs. Nothing is drawn from it, so what others draw does not depend on this.

    Raises:
        MethodError: the network does not answer such images.
    """
    images = dead_leaves(COUNT, shown.spec, torch.Generator().manual_seed(generator.initial_seed() + 1))
    return Leaves(images=images, answers=shown.logits(images).argmax(1), classes=shown.classes)
