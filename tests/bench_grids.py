"""Small grids and stores for the tests."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from unbackdoor.experiments import Grid, Probe, read_grid


def probes(count: int, seconds: float = 0.0) -> Grid:
    """Cells that do nothing."""
    return Grid("probes", "probes", "", tuple(Probe(number=n, seconds=seconds) for n in range(count)))


def pictures(root: Path, classes: int = 3, each: int = 8, size: int = 16) -> Path:
    """A data set of class folders: a class is a shade."""
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in range(classes):
            for number in range(each):
                shade = 40 + 80 * label
                array = np.clip(random.normal(shade, 20, (size, size, 3)), 0, 255).astype(np.uint8)
                path = root / split / f"c{label}" / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    return root


def written(path: Path, **values: object) -> Path:
    """A grid of one run."""
    lines = ['name = "toy"', "[[runs]]"]
    for key, value in values.items():
        text = str(value).replace("'", '"').replace("True", "true").replace("False", "false")
        lines.append(f"{key} = {text if not isinstance(value, str) else chr(34) + value + chr(34)}")
    path.write_text("\n".join(lines) + "\n")
    return path


def toy(folder: Path) -> Grid:
    """Twelve cells: two trainings, and five repairs of each."""
    data = pictures(folder / "pictures")
    path = written(
        folder / "toy.toml",
        data=str(data),
        arch="resnet18:width=2",
        attack=["none", "badnet"],
        rate=0.2,
        epochs=1,
        method=["none", "lpp", "clp", "bnp", "rnp:unlearn_epochs=1,recover_epochs=1,holdout=0.0", "ft:epochs=1"],
        clean=0.5,
    )
    return dataclasses.replace(read_grid(path))
