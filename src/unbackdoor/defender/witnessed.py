"""What a look saw, as plain values with pictures."""

from __future__ import annotations

import base64
import dataclasses
import io

import torch
import torch.nn.functional as F
from torch import Tensor

from unbackdoor.defender.look import Look
from unbackdoor.defender.on_pixels import OnPixels
from unbackdoor.findings import ClassWitness, FoundTrigger, PushingChannel, StampedSurrogate, Witness

#: Channels, suspects with pictures, and pictures of each.
CHANNELS, PICTURED, PICTURES = 8, 3, 3
#: Pixels a side of a picture; larger ones are made smaller.
LARGEST = 112


def witnessed(shown: OnPixels, seen: Look, note: str, seed: int) -> Witness:
    """What a look saw of a network.

    Args:
        shown: the network.
        seen: the look.
        note: on what images it takes.
        seed: of everything that was drawn.
    """
    verdict = seen.verdict

    def of_class(label: int) -> ClassWitness:
        return ClassWitness(
            label=label,
            scores={name: one[label] for name, one in seen.scores.items()},
            standard={name: one[label] for name, one in verdict.standard.items()},
            values={name: one[label] for name, one in seen.values.items()},
        )

    found = Witness(
        classes=tuple(of_class(label) for label in range(shown.classes)),
        suspects=verdict.suspects,
        statistic=verdict.statistic,
        p=verdict.p,
        alpha=verdict.alpha,
        limit=verdict.limit,
        least=verdict.least,
        honest=verdict.honest,
        missing=seen.missing,
        channels=_channels(seen),
        triggers=(),
        seed=seed,
        notes=(*verdict.notes, note),
    )
    pictured = found.suspects or tuple(one.label for one in found.ranked[:1])
    triggers = [_trigger(shown, seen, label) for label in pictured[:PICTURED]]
    return dataclasses.replace(found, triggers=tuple(one for one in triggers if one is not None))


def _channels(seen: Look) -> tuple[PushingChannel, ...]:
    """Those that move most answers to one class."""
    found = []
    for layer in seen.pushes:
        moved, labels = layer.flips.max(1)
        change = layer.change.gather(1, labels[:, None])[:, 0]
        rows = zip(moved.tolist(), change.tolist(), labels.tolist(), strict=True)
        found += [
            (-share, -gain, PushingChannel(layer=layer.layer, channel=channel, label=label, moved=share))
            for channel, (share, gain, label) in enumerate(rows)
            if share > 0
        ]
    return tuple(channel for *_, channel in sorted(found, key=lambda one: one[:2])[:CHANNELS])


@torch.no_grad()
def _trigger(shown: OnPixels, seen: Look, label: int) -> FoundTrigger | None:
    """A class's trigger on images of other classes, of as many different answers as can be."""
    trigger = seen.trigger(label)
    if trigger is None or trigger.form is None:
        return None
    before = seen.made.answers
    others = (before != label).nonzero().flatten()
    stamped = trigger.form(seen.made.images[others].to(shown.device)).cpu()
    after = shown.logits(stamped).argmax(1)
    first = {int(before[index]): place for place, index in reversed(list(enumerate(others.tolist())))}
    places = [first[answer] for answer in sorted(first)][:PICTURES]
    pictures = tuple(
        StampedSurrogate(
            before=picture(seen.made.images[others[place]]),
            after=picture(stamped[place]),
            answer_before=int(before[others[place]]),
            answer_after=int(after[place]),
        )
        for place in places
    )
    change = (stamped - seen.made.images[others]).mean(0)
    return FoundTrigger(
        label=label,
        form=trigger.form.name,
        size=trigger.size,
        moved=float((after == label).double().mean()),
        change=picture(0.5 + change / (2 * change.abs().amax().clamp_min(1e-6))),
        pictures=pictures,
    )


def picture(pixels: Tensor) -> str:
    """(C, H, W) in [0, 1] as a PNG in a data URI: in colour if it has three channels, else their mean in grey."""
    from PIL import Image

    if max(pixels.shape[1:]) > LARGEST:
        scale = LARGEST / max(pixels.shape[1:])
        size = [max(1, round(side * scale)) for side in pixels.shape[1:]]
        pixels = F.interpolate(pixels[None], size=size, mode="bilinear", antialias=True)[0]
    drawn = pixels if len(pixels) == 3 else pixels.mean(0, keepdim=True).expand(3, -1, -1)
    stream = io.BytesIO()
    raw = (drawn.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(raw).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
