"""`witness`: what the witnesses that need no data say of a network together."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor.api.images import case_with_network, check_seed
from unbackdoor.api.reading import ModelFile, open_model
from unbackdoor.defender.case import Case
from unbackdoor.defender.look import Look, look
from unbackdoor.defender.on_pixels import OnPixels, on_pixels
from unbackdoor.errors import SettingError
from unbackdoor.findings import ClassWitness, FoundTrigger, PushingChannel, StampedSurrogate, Witness
from unbackdoor.inputs import normalisation
from unbackdoor.models import Arch

#: Channels, suspects with pictures, and pictures of each.
CHANNELS, PICTURED, PICTURES = 8, 3, 3
#: Pixels a side of a picture; larger ones are made smaller.
LARGEST = 112

Told = Callable[[int, int, str], None]


def witness(
    source: str | Path | nn.Module,
    *,
    data: str | None = None,
    arch: str | Arch | None = None,
    key: str | None = None,
    example: Any = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    output: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Told = lambda _done, _total, _note: None,
) -> Witness:
    """Look for a class that is too easy to reach, with the network alone, and compare it with honest networks.

    Args:
        source: a model file, or a network; it is left as it is.
        data: the data set that it is for, whose size and normalisation are taken; none of its images is read.
        arch: the network of a file, as in `--arch`, if it does not name it.
        key: which entry of a torch file to read, if there are several.
        example: an input, which says the size of the images if nothing else does.
        mean, std: of the images, one number or one a channel, for pixels from 0 to 1.
        output: which part of the network's output is the logits: a key, a number or a field's name.
        seed: for everything that is drawn.
        device: where a file's network runs.
        progress: called with (done, total, a note).

    Raises:
        CheckpointError, ArchitectureError: the file cannot be read, is not that network's, or names none.
        SettingError: a setting is out of its range.
        MethodError: the size of the images is not known, or the network does not answer them.
    """
    from unbackdoor.metrics import check_device

    check_seed(seed)
    given = normalisation(mean, std)
    if isinstance(source, nn.Module):
        generator = torch.Generator().manual_seed(seed)
        case = Case(
            network=source,
            example=example,
            normalisation=given,
            generator=generator,
            output=output,
            progress=progress,
        )
        return witness_of(case, data, seed)
    if not isinstance(source, str | Path):
        raise SettingError(
            f"witness: expected a model file or a network (torch.nn.Module), got {type(source).__name__}"
        )
    check_device(device)
    file = open_model(source, arch=arch, key=key, example=example)
    return witness_file(
        file, data=data, example=example, given=given, output=output, seed=seed, device=device, progress=progress
    )


def witness_file(
    file: ModelFile, *, data: str | None, example: Any, given: Any, output: str | None, seed: int, device: str,
    progress: Told,
) -> Witness:  # fmt: skip
    """The same, of a file that has been read; the arguments are `witness`'s, and `given` a normalisation."""
    case = case_with_network(
        file, device=device, seed=seed, example=example, output=output, progress=progress, normalisation=given
    )
    found = witness_of(case, data, seed)
    return dataclasses.replace(found, source=str(file.checkpoint.path), arch=str(file.arch))


def witness_of(case: Case, data: str | None, seed: int) -> Witness:
    """The same, of a case; its generator was made with the seed."""
    if data is not None:
        from unbackdoor.data import dataset_spec

        case = dataclasses.replace(case, spec=dataset_spec(data))
    with case.working("witness") as model:
        shown, note = on_pixels(case, model)
        seen = look(shown, case.layers(), case.rng, case.progress)
        return _witness(shown, seen, note, seed)


def _witness(shown: OnPixels, seen: Look, note: str, seed: int) -> Witness:
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
    """Those that move most answers to one class; the first third of the layers does not count."""
    found = []
    for layer in seen.pushes[len(seen.pushes) // 3 :]:
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
