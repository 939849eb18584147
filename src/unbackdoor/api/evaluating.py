"""`evaluate`: ACC, ASR, RA and the target's recall of a network or a model file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from unbackdoor.api.arguments import as_attack
from unbackdoor.api.reading import load_model
from unbackdoor.errors import SettingError
from unbackdoor.findings import Evaluation
from unbackdoor.models import Arch

if TYPE_CHECKING:
    from unbackdoor.attacks import Attack
    from unbackdoor.data import LabelledImages


def evaluate(
    model: nn.Module | str | Path,
    *,
    data: str | LabelledImages = "cifar10",
    attack: Attack | str | None = None,
    arch: str | Arch | None = None,
    output: str | None = None,
    data_dir: str | Path | None = None,
    download: bool = False,
    device: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure a network's ACC on a test set, and with an attack its ASR, RA and the target's recall.

    Args:
        model: a network that expects the data set's normalised images, or a model file.
        data: name of the data set, a data.toml, or a folder of images; or the images themselves.
        attack: puts its trigger on the test images whose class is not the target; an attack, or its name.
        arch: the network, as in `--arch`, if the file does not name it.
        output: which part of the network's output is the logits, if it is a dict, a tuple or a dataclass: a key, a
            number or a field's name.
        data_dir: folder of the data sets; default $UNBACKDOOR_DATA, else ./data.
        download: whether to fetch a known data set that is missing.
        device: where to run; None leaves a network where it is.
        progress: called with (images done, total images).

    Raises:
        DataError: the data set was not found.
        ArchitectureError: the network is unknown, not the one in the file, or has another number of classes.
        SettingError: the attack does not fit the data set.
    """
    from unbackdoor.data import LabelledImages, load_dataset
    from unbackdoor.metrics import measure

    attack = as_attack(attack)
    if not isinstance(model, nn.Module):
        model = load_model(model, arch=arch)
    if isinstance(data, LabelledImages):
        test = data
    else:
        if not isinstance(data, (str, Path)):
            raise SettingError(f"data: expected a data set's name, a path or LabelledImages, got {type(data).__name__}")
        test = load_dataset(data, "test", data_dir, download=download, progress=progress)
    if device is not None:
        model = model.to(device)
    return measure(model, test, attack, output=output, progress=progress)
