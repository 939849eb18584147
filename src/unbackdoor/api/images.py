"""What a method or a detector is given to work on: a network of a file, and images if it needs them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unbackdoor.api.reading import ModelFile, network_of
from unbackdoor.api.training_record import RECORD
from unbackdoor.defender.case import Case, Needs
from unbackdoor.errors import SettingError

if TYPE_CHECKING:
    from unbackdoor.attacks import Attack
    from unbackdoor.data import DatasetSpec, LabelledImages

#: Largest record that is read.
MAX_RECORD = 2**20

Progress = Callable[[int, int, str], None]


def check_poisoned(poisoned: float, attack: Attack | None, *, kind: str, example: str, name: str, needs: Needs) -> None:
    """SettingError if poisoned images were asked for that nothing makes or uses.

    Args:
        kind: "method" or "detector", and `example` one that uses training images.
        name, needs: of the one that was chosen.
    """
    if poisoned and (attack is None or needs != "training images"):
        raise SettingError(
            f"poisoned: expected 0, got {poisoned}; poisoned images need an attack and a {kind} that uses training "
            f"images ({example}), and {name} uses {needs}"
        )


def case_with_network(
    file: ModelFile, *, device: str, seed: int, example: Any, output: str | None, progress: Progress
) -> Case:
    """The file's network on a device, with a seeded generator and no images yet."""
    return Case(
        network=network_of(file).to(device),
        graph=file.graph,
        example=example,
        generator=torch.Generator().manual_seed(seed),
        output=output,
        progress=progress,
    )


def recorded_spec(file: ModelFile) -> DatasetSpec | None:
    """What is known of the data set that the training record beside a model file names.

    None if there is no such record, if it is another network's, or if its data set is not known.
    """
    from unbackdoor.data import DATASETS

    path = file.checkpoint.path.with_name(RECORD)
    try:
        if path.stat().st_size > MAX_RECORD:
            return None
        record = json.loads(path.read_text(encoding="utf-8"))
        arch, name = record["arch"], record["data"]["name"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return DATASETS[name] if arch == str(file.arch) and isinstance(name, str) and name in list(DATASETS) else None


def with_images(
    case: Case,
    file: ModelFile,
    data: str,
    clean: float,
    seed: int,
    attack: Attack | None,
    poisoned: float,
    data_dir: str | Path | None,
    *,
    download: bool,
) -> Case:
    """The same case with training images, of which a share may carry the attack's trigger.

    Args:
        clean: a fraction up to 1, or a count.

    Raises:
        DataError: the data set was not found.
        SettingError: `clean` or `poisoned` is out of its range.
        ArchitectureError: the network has other classes than the data set.
    """
    from unbackdoor.metrics import check_answer

    given = method_images(data, clean, seed, attack, poisoned, data_dir, download=download, progress=case.progress)
    check_answer(case.module, given.spec, name=str(file.checkpoint.path), output=case.output)
    return dataclasses.replace(case, images=given.images, labels=given.labels, spec=given.spec)


def method_images(
    data: str,
    clean: float,
    seed: int,
    attack: Attack | None,
    poisoned: float,
    data_dir: str | Path | None,
    *,
    download: bool,
    progress: Progress,
) -> LabelledImages:
    """The images for a method or detector."""
    from unbackdoor.data import clean_subset, load_dataset

    train = load_dataset(
        data, "train", data_dir, download=download, progress=with_note("reading training images", progress)
    )
    if not math.isfinite(clean) or (clean > 1 and clean != int(clean)):
        raise SettingError(f"clean: expected a fraction up to 1, or a whole number of images, got {clean}")
    subset = (
        clean_subset(train, count=int(clean), seed=seed) if clean > 1 else clean_subset(train, share=clean, seed=seed)
    )
    images = subset.data
    if not poisoned or attack is None:
        return images
    return mixture(images, attack, poisoned, seed)[0]


def check_seed(seed: int) -> None:
    """SettingError if a random generator cannot use the seed."""
    if not 0 <= seed < 2**32:
        raise SettingError(f"seed: expected a number from 0 to {2**32 - 1}, got {seed}")


def mixture(images: LabelledImages, attack: Attack, share: float, seed: int) -> tuple[LabelledImages, int]:
    """Poison a share of training images; returns them, and how many carry the trigger.

    Raises:
        SettingError: the share is out of range, or the attack cannot poison more images.
    """
    if not 0 <= share <= 1:
        raise SettingError(f"poisoned: expected a share between 0 and 1, got {share}")
    classes, generator = images.spec.num_classes, torch.Generator().manual_seed(seed)
    poisoned = attack.poison(images.images, images.labels, rate=share, num_classes=classes, generator=generator)
    return dataclasses.replace(images, images=poisoned.images, labels=poisoned.labels), int(poisoned.mask.sum())


def with_note(note: str, progress: Progress) -> Callable[[int, int], None]:
    """A progress function of two arguments that adds this note."""
    return lambda done, total: progress(done, total, note)
