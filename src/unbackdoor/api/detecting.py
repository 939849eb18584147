"""`detect`: examine a model file with a passive detector, and with images if it needs them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unbackdoor.api.arguments import as_attack
from unbackdoor.api.images import case_with_network, check_poisoned, check_seed, on_data, with_images
from unbackdoor.api.reading import open_model
from unbackdoor.errors import SettingError
from unbackdoor.findings import Detection
from unbackdoor.inputs import normalisation
from unbackdoor.models import Arch

if TYPE_CHECKING:
    from unbackdoor.attacks import Attack
    from unbackdoor.detectors import Detector


def detect(
    source: str | Path,
    *,
    detector: Detector,
    data: str | None = None,
    images: float = 0.05,
    seed: int = 0,
    attack: Attack | str | None = None,
    poisoned: float = 0.0,
    arch: str | Arch | None = None,
    key: str | None = None,
    example: Any = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    output: str | None = None,
    data_dir: str | Path | None = None,
    download: bool = False,
    device: str = "cpu",
    progress: Callable[[int, int, str], None] = lambda _done, _total, _note: None,
) -> Detection:
    """Look for a backdoor in a model file, with images of its data set if the detector needs them.

    Args:
        source: a model file; it is never modified.
        detector: for example Activation Clustering or Neural Cleanse.
        data: name of the data set, a data.toml, or a folder of images; its training part is used. A detector that only
            needs the network takes the images' size and normalisation from it, or does without.
        images: training images for the detector: a fraction up to 1, or a count.
        seed: for the choice of these images, and for the detector's random numbers.
        attack: puts its trigger on a share of the images, for detectors that use the training set.
        poisoned: that share.
        arch: the network, as in `--arch`, if the file does not name it.
        key: which entry of a torch file to read, if there are several.
        example: an input for the network, if its layers cannot be read without one (see `layer_graph`); the size of its
            images, for a detector that makes some.
        mean, std: of the images that the network takes, one number or one a channel, for pixels from 0 to 1. Default:
            the data set's; else a detector that makes images finds them out (`defender.input_spec`).
        output: which part of the network's output is the logits: a key, a number or a field's name.
        data_dir: folder of the data sets; default $UNBACKDOOR_DATA, else ./data.
        download: whether to fetch a known data set that is missing.
        device: where to run.
        progress: called with (done, total, a note).

    Raises:
        CheckpointError, ArchitectureError: the file cannot be read, is not that network's, or has other classes.
        DataError: the data set was not found.
        SettingError: a setting is out of its range, or no data set was given to a detector that needs one.
        MethodError: the detector cannot work on this network.
    """
    from unbackdoor.metrics import check_device

    attack = as_attack(attack)
    check_poisoned(poisoned, attack, kind="detector", example="ac", name=detector.name, needs=detector.needs)
    wants = detector.needs != "nothing"
    if wants and data is None:
        raise SettingError(f"detect: {detector.name} needs {detector.needs}: give a data set with --data (data=...)")
    given = normalisation(mean, std)
    check_seed(seed)
    check_device(device)
    file = open_model(source, arch=arch, key=key, example=example)
    case = case_with_network(
        file, device=device, seed=seed, example=example, output=output, progress=progress, normalisation=given
    )
    if wants:
        case = with_images(case, file, str(data), images, seed, attack, poisoned, data_dir, download=download)
    else:
        case = on_data(case, data)
    found = detector.run(case)
    return dataclasses.replace(found, source=str(source))
