"""What witnesses may say: a suspect, none, and that they cannot tell."""

from __future__ import annotations

import dataclasses

from unbackdoor.findings import ClassWitness, FoundTrigger, PushingChannel, StampedSurrogate, Witness

#: A PNG of one pixel.
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)


def a_witness(classes: int = 10, **changes: object) -> Witness:
    """Class 3 is suspected, class 5 after it."""
    z = {3: 9.0, 5: 2.0}
    found = Witness(
        classes=tuple(
            ClassWitness(
                label=label,
                scores={"head": 1.5, "stimulation": -0.5 + z.get(label, 0), "reconstruction": None},
                standard={"head": -1.0, "stimulation": z.get(label, -2.0), "reconstruction": None},
                values={"head": 12.5, "stimulation": 0.25, "mask": 40.0, "additive": None},
            )
            for label in range(classes)
        ),
        suspects=(3, 5),
        statistic=9.0,
        p=1 / 21,
        alpha=0.05,
        limit=1.75,
        least=1 / 21,
        honest=20,
        missing={"reconstruction": "no trigger moved 90% of the generated images to any class"},
        channels=(PushingChannel(layer="layer4.1.conv2", channel=7, label=3, moved=0.875),),
        triggers=(
            FoundTrigger(
                label=3,
                form="mask",
                size=6.25,
                moved=0.95,
                change=PIXEL,
                pictures=(StampedSurrogate(before=PIXEL, after=PIXEL, answer_before=1, answer_after=3),),
            ),
        ),
        seed=0,
        notes=("images 3x32x32 (given)",),
        source="models/net.safetensors",
        arch="resnet18:width=16",
    )
    return dataclasses.replace(found, **changes)  # type: ignore[arg-type]


def without_a_suspect() -> Witness:
    return a_witness(suspects=(), p=0.5, limit=10.0)


def cannot_tell() -> Witness:
    return a_witness(
        suspects=(), p=None, statistic=None, limit=None, triggers=(), notes=("no witness could look at this network",)
    )
