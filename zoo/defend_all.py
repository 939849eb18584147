"""Every method against every network of the zoo: one record a cell in zoo/defences/, those that exist are kept.

    python zoo/defend_all.py [--data-dir DIR] [--method NAME ...] [--network NAME ...]

Cells: every method with 5 % of the training images (seed 0) against every ResNet of CIFAR-10, with 1 % and three seeds
against BadNets and WaNet; LPP and CLP, which are given nothing, once against every network. Settings are
the methods' defaults. Several processes may share the work; a cell that failed is kept as such. ACC, ASR and RA are
those of the whole test set. Needs the data sets.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import functools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from unbackdoor.api import Defended, load_model
from unbackdoor.api.defending import mixture
from unbackdoor.atomic import atomic_write
from unbackdoor.attacks import load_attack
from unbackdoor.data import LabelledImages, clean_subset, load_dataset
from unbackdoor.defender.case import Case
from unbackdoor.errors import UnbackdoorError
from unbackdoor.experiments.cell import parse_method_text, wants_images
from unbackdoor.metrics import read_evaluation
from unbackdoor.train import measure

ZOO = Path(__file__).parent
RECORDS = ZOO / "defences"
DEVICE = "cpu"
#: In the order in which they are run: the networks of the three-seed cells first.
NETWORKS = (
    "cifar10_badnet",
    "cifar10_wanet",
    "cifar10_clean",
    "cifar10_blended",
    "cifar10_bpp",
    "cifar10_inputaware",
    "cifar10_sig",
    "gtsrb_clean",
    "gtsrb_badnet",
    "cifar10_mobilenetv2_clean",
)
#: Of these, for the methods that are given nothing.
DATA_FREE_ALONE = ("gtsrb_clean", "gtsrb_badnet", "cifar10_mobilenetv2_clean")
#: With "@", one of their presets.
METHODS = ("lpp", "clp", "bnp", "ep", "rnp", "rnp@as_published", "nad@backdoorbench", "nad", "ft", "fp", "ibau", "anp")
THREE_SEEDS = ("cifar10_badnet", "cifar10_wanet")
#: Of EP's images, which are a sample of the poisoned training set.
POISONED = 0.1


@dataclass(frozen=True)
class Cell:
    """One repair by a method of METHODS: `share` and `seed` are of the clean images, 0 for methods without any."""

    network: str
    method: str
    share: float
    seed: int

    @property
    def file(self) -> Path:
        """Of its record."""
        given = f"_{self.share:g}_{self.seed}" if self.share else ""
        return RECORDS / f"{self.network}_{self.method.replace('@', '_')}{given}.json"


def cells() -> Iterator[Cell]:
    """All of them."""
    trained = [method for method in METHODS if not data_free(method)]
    for network in NETWORKS:
        yield from (Cell(network, method, 0, 0) for method in METHODS if data_free(method))
        if network not in DATA_FREE_ALONE:
            yield from (Cell(network, method, 0.05, 0) for method in trained)
        if network in THREE_SEEDS:
            yield from (Cell(network, method, 0.01, seed) for seed in (0, 1, 2) for method in trained)


def data_free(method: str) -> bool:
    """Whether it is given no images."""
    return wants_images(method) is None


def run(cell: Cell, data_dir: str | None) -> dict[str, object]:
    """Repair and measure."""
    folder = ZOO / cell.network
    trained = json.loads((folder / "record.json").read_text())
    train, test = (_load(trained["data"]["name"], split, data_dir) for split in ("train", "test"))
    before = trained["result"]
    attack = load_attack(folder / "attack.json") if (folder / "attack.json").exists() else None
    model = load_model(folder / "model.safetensors")
    method = parse_method_text(cell.method)
    poisoned = 0
    case = Case(network=model, generator=torch.Generator().manual_seed(cell.seed))
    if method.needs != "nothing":
        images = clean_subset(train, share=cell.share, seed=cell.seed).data
        if method.needs == "training images" and attack is not None:
            images, poisoned = mixture(images, attack, POISONED, cell.seed)
        case = dataclasses.replace(case, images=images.images, labels=images.labels, spec=images.spec)
    started = time.perf_counter()
    outcome = method.run(case)
    seconds = time.perf_counter() - started
    report = outcome.report
    if report.data is not None:
        report = dataclasses.replace(report, data=dataclasses.replace(report.data, share=cell.share, seed=cell.seed))
    after = measure(outcome.model, test, attack)
    done = Defended(report, read_evaluation(before), after, seconds)
    return {"network": cell.network, "cell": cell.method, "poisoned_images": poisoned, **done.record(DEVICE)}


@functools.cache
def _load(name: str, split: str, data_dir: str | None) -> LabelledImages:
    return load_dataset(name, split, data_dir)


@contextlib.contextmanager
def claimed(cell: Cell) -> Iterator[bool]:
    """Whether this process alone works on a cell that is not done; a killed process lets go of its claim."""
    with cell.file.with_suffix(".running").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield not cell.file.exists()
        Path(lock.name).unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--method", action="append", choices=METHODS)
    parser.add_argument("--network", action="append", choices=NETWORKS)
    options = parser.parse_args()
    RECORDS.mkdir(exist_ok=True)
    for cell in cells():
        if cell.method not in (options.method or METHODS) or cell.network not in (options.network or NETWORKS):
            continue
        if not (ZOO / cell.network / "model.safetensors").exists() or cell.file.exists():
            continue
        with claimed(cell) as free:
            if not free:
                continue
            try:
                record = run(cell, options.data_dir)
            except UnbackdoorError as error:
                record = {"network": cell.network, "cell": cell.method, "share": cell.share, "failed": str(error)}
            with atomic_write(cell.file, overwrite=True) as stream:
                stream.write((json.dumps(record, indent=1, allow_nan=False) + "\n").encode())
            print(cell.file.stem, record.get("seconds", record.get("failed")), flush=True)


if __name__ == "__main__":
    main()
