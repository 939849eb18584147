"""The smallest trigger on a network's own channels, for each class: which few must fire to lead images there.

Whatever a trigger looks like, a backdoor ends in a few channels near the classifier that carry it to the attacker's
class. So channels of the last layers are raised, everywhere in their maps and in several layers at once, and the least
that leads most images to a class is searched. Honest classes need several channels far out.

    r(t, l, c)   by how many deviations channel c of layer l is raised for class t, at least 0; the deviation is |gamma|
                 behind a BatchNorm, elsewhere that on the images
    size(t)      the sum of r over the channels of all layers
    lead(t)      log2 of the smallest size of another class / size(t)

In a network that is twice as wide, and does with two channels what one did, all sizes are twice as large, and the leads
are the same. Stimulation of one channel after the other sees less in it.

Adam, projected onto r >= 0, minimises cross-entropy + lambda * size. lambda rises while enough images are led to the
class, and falls while they are not. The smallest size that succeeded counts, of two searches.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor.defender.case import Progress, part, silent
from unbackdoor.defender.on_pixels import AT_ONCE, OnPixels, folded, going_on, gradients, needs_gradients
from unbackdoor.defender.stimulation import Place, changed, counted, places_of, spreads
from unbackdoor.findings.layers import LayerGraph

#: Where r starts, in two searches. At 0, a channel behind a ReLU that does not fire has no gradient; where all channels
#: are raised, the easiest way may be lost among them.
STARTS = (0.0, 1.0)
#: Steps of Adam, its learning rate in deviations and its betas, and images a step and class.
STEPS, LR, BETAS, EACH = 80, 0.2, (0.8, 0.99), 12
#: lambda at the start, and its factors after a step that succeeded and after one that did not.
WEIGHT, UP, DOWN = 0.01, 1.3, 1 / 1.4
#: The share of a batch that must be led to the class.
SUCCESS = 0.9
#: Of more classes than this, not all are searched twice.
MANY = 50


@dataclass(frozen=True, eq=False)
class ChannelTrigger:
    """Channels that are raised, in the places that were searched.

    Attributes:
        label: the class.
        places: where.
        added: for each place (channels,) what is added to a channel; at least 0.
        size: in deviations; infinity if none led enough images to the class.
    """

    label: int
    places: Sequence[Place]
    added: Sequence[Tensor]
    size: float

    def __str__(self) -> str:
        added, place = max(zip(self.added, self.places, strict=True), key=lambda one: float(one[0].max()))
        count = sum(int((one > 0).sum()) for one in self.added)
        most = f"{int(added.argmax())} of {place.layer}"
        if count == 1:
            return f"channel {most} alone, of size {self.size:.3g}"
        return f"{count} channels at once of size {self.size:.3g}, first of all {most}"

    @contextlib.contextmanager
    def only_from(self, model: nn.Module, start: int) -> Iterator[None]:
        """Within, the channels are raised for the images of a batch from number `start` on; gradients go through.

        Channels that were pruned are not.
        """
        with contextlib.ExitStack() as stack:
            for place, added in zip(self.places, self.added, strict=True):
                if bool((alive := added * ~place.off(model).to(added.device)).any()):
                    stack.enter_context(changed(model, place.path, _raised(alive, place.axis, start)))
            yield


def leads(sizes: Sequence[float]) -> tuple[float, ...]:
    """By how many factors of two each class's size is below the smallest of the others'.

    Where none was found, the size counts as twice the largest that was.
    """
    most = max((size for size in sizes if math.isfinite(size)), default=1.0)
    logs = [math.log2(max(min(size, 2 * most), 1e-3)) for size in sizes]
    first, second = sorted(range(len(logs)), key=logs.__getitem__)[:2]
    return tuple(logs[second if label == first else first] - value for label, value in enumerate(logs))


def channel_triggers(
    shown: OnPixels,
    graph: LayerGraph,
    pixels: Tensor,
    answers: Tensor,
    labels: Sequence[int],
    generator: torch.Generator,
    progress: Progress = silent,
) -> list[ChannelTrigger]:
    """The smallest of some classes; none where no hidden layer is a module that runs once in a forward pass.

    Of more than `MANY` classes, only the most promising quarter is searched from both starts.

    Args:
        shown: the network; its weights take no gradients.
        graph: its layers.
        pixels: (N, C, H, W) in [0, 1]; a class is searched on those that are not answered with it, one at least.
        answers: (N,) what it answers.
        labels: the classes.
        generator: of the batches.
        progress: called with (steps done, steps in all, a note).
    """
    places = _last(places_of(shown, graph, pixels[:2]))
    if not places:
        return []
    spread = spreads(shown, places, pixels)
    deviations = [spread[place.path][1].to(shown.device) for place in places]
    shown = folded(shown, graph)
    _, height, width = shown.spec.shape
    at_once = max(1, AT_ONCE // (EACH * height * width))

    def searched(some: Sequence[int], begin: float, told: Progress) -> list[ChannelTrigger]:
        others = [(answers != label).nonzero().flatten() for label in some]
        sizes, raised = _search(shown.model, answer, places, deviations, others, some, generator, begin, told)
        return [
            ChannelTrigger(label, places, [(r[row] * by).cpu() for r, by in zip(raised, deviations, strict=True)], size)
            for row, (label, size) in enumerate(zip(some, sizes.tolist(), strict=True))
        ]

    found: list[ChannelTrigger] = []
    asked = STEPS * EACH * len(labels)
    with going_on(shown, [place.path for place in places], pixels, asked=asked) as answer:
        for start in range(0, len(labels), at_once):
            told = part(progress, start / len(labels), min(1, (start + at_once) / len(labels)))
            first = searched(labels[start : start + at_once], STARTS[0], part(told, 0, 0.5))
            most = len(first) if len(labels) <= MANY else math.ceil(len(first) / 4)
            promising = sorted(one.label for one in sorted(first, key=lambda one: one.size)[:most])
            again = {one.label: one for one in searched(promising, STARTS[1], part(told, 0.5, 1))}
            found += [min(one, again.get(one.label, one), key=lambda either: either.size) for one in first]
    return found


def _last(places: Sequence[Place]) -> Sequence[Place]:
    """The last third of those behind the first third."""
    behind = counted(places)
    return behind[2 * len(behind) // 3 :]


def _search(
    model: nn.Module,
    answer: Callable[[Tensor], Tensor],
    places: Sequence[Place],
    deviations: Sequence[Tensor],
    others: Sequence[Tensor],
    labels: Sequence[int],
    generator: torch.Generator,
    begin: float,
    progress: Progress,
) -> tuple[Tensor, list[Tensor]]:
    """(classes,) the smallest sizes, and for each place (classes, channels) r; all r start at `begin`."""
    count, device = len(labels), deviations[0].device
    free = [torch.full((count, place.channels), begin, device=device).requires_grad_() for place in places]
    optimiser = torch.optim.Adam(free, lr=LR, betas=BETAS)
    rows = torch.arange(count).repeat_interleave(EACH).to(device)
    wanted, weight = torch.tensor(labels, device=device)[rows], torch.full((count,), WEIGHT)
    least, kept = torch.full((count,), math.inf), [r.detach().clone() for r in free]
    for step in range(STEPS):
        drawn = torch.cat([one[torch.randint(len(one), (EACH,), generator=generator)] for one in others])
        with contextlib.ExitStack() as stack:
            for place, r, deviation in zip(places, free, deviations, strict=True):
                stack.enter_context(changed(model, place.path, _raised((r * deviation)[rows], place.axis)))
            logits = answer(drawn)
            needs_gradients(logits)
            far = F.cross_entropy(logits, wanted, reduction="none").view(count, EACH).mean(1)
            size = torch.stack([r.sum(1) for r in free]).sum(0)
            # Within, since a network may compute parts of itself again for them.
            slopes = gradients((far + weight.to(device) * size).sum(), free)
        led = (logits.argmax(1) == wanted).view(count, EACH).float().mean(1).cpu()
        smaller = (led >= SUCCESS) & (size.detach().cpu() < least)
        least = torch.where(smaller, size.detach().cpu(), least)
        for r, best, slope in zip(free, kept, slopes, strict=True):
            best[smaller.to(best.device)] = r.detach()[smaller.to(best.device)]
            r.grad = slope
        optimiser.step()
        with torch.no_grad():
            for r in free:
                r.clamp_(min=0)
        weight *= torch.where(led >= SUCCESS, UP, DOWN)
        progress(step + 1, STEPS, "several channels at once")
    return least, kept


def _raised(added: Tensor, axis: int, start: int = 0) -> Callable[[Tensor], Tensor]:
    """A change of a module's result, from image `start` on: (channels,) or (N, channels) is added to the whole map."""

    def change(result: Tensor) -> Tensor:
        rows = added.to(result.device, result.dtype).expand(len(result) - start, -1)
        shape = [1] * result.ndim
        shape[0], shape[axis] = rows.shape
        more = rows.view(shape)
        return result + more if not start else torch.cat([result[:start], result[start:] + more])

    return change
