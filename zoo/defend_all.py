"""Every method against every network of the zoo: one record a cell in zoo/defences/, those that exist are kept.

    python zoo/defend_all.py [--data-dir DIR] [--method NAME ...] [--network NAME ...]

Cells: every method with 5 % of the training images (seed 0) against every CIFAR-10 network, with 1 % and three seeds
against BadNets and WaNet; LPP and CLP, which are given nothing, once a network. Settings are the methods' defaults.
Several processes may share the work. ACC, ASR and RA are those of the whole test set. Needs the data set.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from unbackdoor.atomic import atomic_write
from unbackdoor.attacks import load_attack
from unbackdoor.data import LabelledImages, clean_subset, load_dataset
from unbackdoor.defences.base import DataFree
from unbackdoor.defences.table import DEFENCES, parse_method
from unbackdoor.metrics import Evaluation, Rate
from unbackdoor.model_files import Defended, load_model
from unbackdoor.model_files.defending import mixture
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
)
METHODS = ("lpp", "clp", "bnp", "ep", "nad", "rnp", "ft", "fp", "ibau", "anp")
SHARES = ((0.05, (0,)), (0.01, (0, 1, 2)))
THREE_SEEDS = ("cifar10_badnet", "cifar10_wanet")
#: Of EP's images, which are a sample of the poisoned training set.
POISONED = 0.1


@dataclass(frozen=True)
class Cell:
    """One repair: `share` and `seed` are of the clean images, 0 for methods without any."""

    network: str
    method: str
    share: float
    seed: int

    @property
    def file(self) -> Path:
        """Of its record."""
        given = f"_{self.share:g}_{self.seed}" if self.share else ""
        return RECORDS / f"{self.network}_{self.method}{given}.json"


def cells() -> Iterator[Cell]:
    """All of them."""
    for network in NETWORKS:
        for method in METHODS:
            if issubclass(DEFENCES[method], DataFree):
                yield Cell(network, method, 0, 0)
            else:
                yield from (Cell(network, method, 0.05, seed) for seed in SHARES[0][1])
        if network in THREE_SEEDS:
            yield from (Cell(network, m, 0.01, s) for s in SHARES[1][1] for m in METHODS
                        if not issubclass(DEFENCES[m], DataFree))  # fmt: skip


def run(cell: Cell, train: LabelledImages, test: LabelledImages) -> dict[str, object]:
    """Repair and measure."""
    folder = ZOO / cell.network
    before = json.loads((folder / "record.json").read_text())["result"]
    attack = load_attack(folder / "attack.json") if (folder / "attack.json").exists() else None
    model = load_model(folder / "model.safetensors")
    method = parse_method(cell.method)
    poisoned = 0
    started = time.perf_counter()
    if isinstance(method, DataFree):
        outcome = method(model)
        seconds = time.perf_counter() - started
    else:
        images = clean_subset(train, share=cell.share, seed=cell.seed).data
        if method.needs == "training images" and attack is not None:
            images, poisoned = mixture(images, attack, POISONED, cell.seed)
        generator = torch.Generator().manual_seed(cell.seed)
        started = time.perf_counter()
        outcome = method(model, images.images, images.labels, generator=generator, spec=images.spec)
        seconds = time.perf_counter() - started
    report = outcome.report
    if report.data is not None:
        report = dataclasses.replace(report, data=dataclasses.replace(report.data, share=cell.share, seed=cell.seed))
    after = measure(outcome.model, test, attack)
    done = Defended(report, read_rates(before), after, seconds)
    return {"network": cell.network, "poisoned_images": poisoned, **done.record(DEVICE)}


def read_rates(record: dict[str, dict[str, int] | None]) -> Evaluation:
    """The inverse of `Evaluation.to_dict`."""
    rates = {name: None if r is None else Rate(r["hits"], r["total"]) for name, r in record.items()}
    assert rates["acc"] is not None
    return Evaluation(rates["acc"], rates["asr"], rates["ra"])


def claim(cell: Cell) -> Path | None:
    """A file that this process alone holds while it works on a cell; None if another does, or it is done."""
    held = cell.file.with_suffix(".running")
    if cell.file.exists():
        return None
    try:
        os.close(os.open(held, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return None
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--method", action="append", choices=METHODS)
    parser.add_argument("--network", action="append", choices=NETWORKS)
    options = parser.parse_args()
    train, test = (load_dataset("cifar10", split, options.data_dir) for split in ("train", "test"))
    RECORDS.mkdir(exist_ok=True)
    for cell in cells():
        if cell.method not in (options.method or METHODS) or cell.network not in (options.network or NETWORKS):
            continue
        if not (ZOO / cell.network / "model.safetensors").exists() or (held := claim(cell)) is None:
            continue
        try:
            record = run(cell, train, test)
            with atomic_write(cell.file, overwrite=True) as stream:
                stream.write((json.dumps(record, indent=1, allow_nan=False) + "\n").encode())
        finally:
            held.unlink()
        rates = record["after"]
        print(
            cell.file.stem,
            json.dumps({k: v and round(v["value"], 4) for k, v in rates.items()}),
            record["seconds"],
            flush=True,
        )  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
