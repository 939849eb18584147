"""A trained network's folder, of `unbackdoor train` or of a grid's store, and the rows that studies keep."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from unbackdoor.api.images import case_with_network
from unbackdoor.api.reading import open_model
from unbackdoor.data import DatasetSpec
from unbackdoor.defender.case import Case

Row = dict[str, Any]
#: Where the population's part of Tiny ImageNet lies.
SLICE = "runs/population/data.toml:tiny20"
#: A file of networks that is run where a training record names it: the repository's own.
OURS = "grids/population/networks.py:"


def read(folder: Path) -> tuple[Row, Row]:
    """The settings of a network's training, whose `data` is the data set's name, and its rates on the test set."""
    record = json.loads((folder / "record.json").read_text())
    record = record.get("record", record)
    config = dict(record.get("config", record))
    if isinstance(config["data"], dict):
        config["data"] = config["data"]["name"]
    config["data"] = config["data"].rpartition(":")[2]  # a data set of one's own is known by its name
    return config, record["result"].get("rates", record["result"])


def source(name: str) -> str:
    """What `unbackdoor.data` is asked for, to get the data set of that name."""
    return SLICE if name == "tiny20" else name


def case(folder: Path, spec: DatasetSpec, *, seed: int = 0) -> Case:
    """A network as a method sees it that is told nothing but the size and normalisation of its images."""
    arch = read(folder)[0]["arch"]
    opened = case_with_network(
        open_model(folder / "model.safetensors", arch=arch if arch.startswith(OURS) else None),
        device="cpu",
        seed=seed,
        example=torch.zeros(2, spec.channels, spec.size, spec.size),
        output=None,
        progress=lambda _done, _total, _note: None,
    )
    return dataclasses.replace(opened, spec=spec)


def rows(file: Path) -> list[Row]:
    """Those of a file; none if there is no such file."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
