"""What a method or a detector is given to work on: a network of a file, and images if it needs them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unbackdoor.api.reading import MAX_ARCH, ModelFile, network_of
from unbackdoor.defences.base import Defence
from unbackdoor.defender.case import Case, Needs, Progress, silent
from unbackdoor.errors import ArchitectureError, SettingError
from unbackdoor.inputs import Normalisation
from unbackdoor.models import parse_arch
from unbackdoor.records import read_json

if TYPE_CHECKING:
    from unbackdoor.attacks import Attack
    from unbackdoor.data import DatasetSpec, LabelledImages

#: BackdoorBench's names of data sets that have another one here.
_BACKDOORBENCH_DATA = {"tiny": "tiny_imagenet"}
#: Bytes of a record that are read; more is no record of a training run.
_LONGEST_RECORD = 2**20


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
    file: ModelFile,
    *,
    device: str,
    seed: int,
    example: Any,
    output: str | None,
    progress: Progress,
    normalisation: Normalisation | None = None,
) -> Case:
    """The file's network on a device, with a seeded generator and no images yet; its data set's spec, if that is known.

    Args:
        normalisation: of the images that the network takes, where the user gave one.
    """
    return Case(
        network=network_of(file).to(device),
        graph=file.graph,
        example=example,
        spec=trained_on(file),
        normalisation=normalisation,
        generator=torch.Generator().manual_seed(seed),
        output=output,
        progress=progress,
    )


def on_data(case: Case, data: str | None) -> Case:
    """The case of a network for the data set that was named, whose images are not read; as it is where none was.

    Raises:
        DataError: there is no such data set.
    """
    if data is None:
        return case
    from unbackdoor.data import dataset_spec

    return dataclasses.replace(case, spec=dataset_spec(data))


def case_of(
    file: ModelFile,
    method: Defence,
    *,
    seed: int = 0,
    example: Any = None,
    normalisation: Normalisation | None = None,
    progress: Progress = silent,
) -> Case:
    """The `Case` of a file without images.

    Args:
        file: the model file.
        method: a method that only needs the network.
        seed: for its random numbers.
        example: an input, which tells a method that runs the network what images it takes.
        normalisation: of the images that the network takes, where the user gave one.
        progress: called with (done, total, a note).

    Raises:
        SettingError: the method needs images.
    """
    if method.needs != "nothing":
        raise SettingError(
            f"{method.name} needs {method.needs}, which scan and repair do not take; use defend with a data set"
        )
    generator = torch.Generator().manual_seed(seed)
    if not method.runs or file.arch is None:
        return Case(network=file.source, graph=file.graph, generator=generator, progress=progress)
    return Case(
        network=network_of(file),
        graph=file.graph,
        example=example,
        spec=trained_on(file),
        normalisation=normalisation,
        generator=generator,
        progress=progress,
    )


def trained_on(file: ModelFile) -> DatasetSpec | None:
    """The known data set that a file's network was trained on, if the file or the record of its training names it.

    A record beside the file is that of `unbackdoor train`, unless it is of another architecture.
    """
    from unbackdoor.data import DATASETS

    name = _BACKDOORBENCH_DATA.get(str(file.data), file.data) or _recorded_data(file)
    return DATASETS[name] if name is not None and name in DATASETS else None


def _recorded_data(file: ModelFile) -> str | None:
    """The data set's name in the record beside a model file; None where there is no such record."""
    from unbackdoor.api.training_record import RECORD

    path = file.checkpoint.path.parent / RECORD
    if not path.is_file():
        return None
    try:
        with path.open("rb") as stream:
            record = read_json(stream.read(_LONGEST_RECORD))
        name, arch = record["data"]["name"], parse_arch(record["arch"][:MAX_ARCH])
    except (OSError, ValueError, LookupError, TypeError, ArchitectureError):  # damaged, or something else
        return None
    own = file.arch
    if own is None or (own.source, own.name) != (arch.source, arch.name) or not isinstance(name, str):
        return None
    return name if all(arch.options.get(key, value) == value for key, value in own.options.items()) else None


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

    They are normalised as the case says, else as their data set.

    Args:
        clean: a fraction up to 1, or a count.

    Raises:
        DataError: the data set was not found.
        SettingError: `clean` or `poisoned` is out of its range.
        ArchitectureError: the network has other classes than the data set.
    """
    from unbackdoor.data import clean_subset, load_dataset
    from unbackdoor.metrics import check_answer

    train = load_dataset(
        data, "train", data_dir, download=download, progress=with_note("reading training images", case.progress)
    )
    if not math.isfinite(clean) or (clean > 1 and clean != int(clean)):
        raise SettingError(f"clean: expected a fraction up to 1, or a whole number of images, got {clean}")
    subset = (
        clean_subset(train, count=int(clean), seed=seed) if clean > 1 else clean_subset(train, share=clean, seed=seed)
    )
    given = subset.data
    if poisoned and attack is not None:
        given, _ = mixture(given, attack, poisoned, seed)
    check_answer(case.module, given.spec, name=str(file.checkpoint.path), output=case.output)
    spec = given.spec
    if case.normalisation is not None:
        inputs = case.normalisation.spec((spec.channels, spec.size, spec.size))
        spec = dataclasses.replace(spec, mean=inputs.mean, std=inputs.std)
    return dataclasses.replace(case, images=given.images, labels=given.labels, spec=spec)


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
