"""What the detectors that need no data say of networks whose answer is known.

    python studies/witnesses.py measure NETWORK... -o FILE    # folders of unbackdoor train, or of a grid's store
    python studies/witnesses.py show FILE...                  # each witness alone: AUC, and the classes it names

`measure` runs the detectors of METHODS at their defaults, seed 0, and appends a row a network: what is true of it, and
every detector's values of every class. Nothing is decided here: thresholds and p-values come from the rows of the
clean networks of the calibration half.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

import trained
from trained import Row
from unbackdoor.api import detect
from unbackdoor.data import dataset_spec
from unbackdoor.detectors import parse_detector
from unbackdoor.errors import UnbackdoorError

METHODS = ("stimulation", "reconstruction", "head")
#: Which value of a class is its score, and whether both tails speak.
SCORES = {"stimulation": ("score", False), "reconstruction": ("score", False), "head": ("deviations", True)}


def truth(folder: Path) -> Row:
    """What a record says of a network."""
    config, rates = trained.read(folder)
    rate = rates.get("asr")
    return {
        "network": folder.name,
        "data": config["data"],
        "arch": config["arch"],
        "attack": config["attack"],
        "recipe": config["recipe"],
        "acc": rates["acc"]["hits"] / rates["acc"]["total"],
        "asr": rate["hits"] / rate["total"] if rate else None,
    }


def measure(folder: Path) -> Row:
    """The row of one network."""
    row = truth(folder)
    shape = (2, dataset_spec(row["data"]).channels, *2 * (dataset_spec(row["data"]).size,))
    for name in METHODS:
        started = time.process_time()
        try:
            found = detect(
                folder / "model.safetensors",
                detector=parse_detector(name),
                data=row["data"],
                seed=0,
                example=torch.zeros(shape),
            )
            row[name] = [dict(one.values) for one in found.classes]
        except UnbackdoorError as error:
            row[name] = str(error)
        row[f"{name} seconds"] = round(time.process_time() - started, 1)
    return row


def score_of(row: Row, name: str) -> tuple[float, int | None]:
    """The network's score by one witness, and the class that has it; -inf where the witness cannot look."""
    if isinstance(row[name], str):
        return -np.inf, None
    key, both = SCORES[name]
    values = np.array([-np.inf if one[key] is None else one[key] for one in row[name]], dtype=float)
    values = np.where(np.isfinite(values), np.abs(values) if both else values, -np.inf)
    return float(values.max()), int(values.argmax())


def show(rows: list[Row]) -> None:
    """Each witness alone, on networks whose attack took (ASR of 80 % or more)."""
    clean = [row for row in rows if row["attack"] is None]
    took = [row for row in rows if row["attack"] is not None and (row["asr"] or 0) >= 0.8]
    print(f"{len(clean)} clean, {len(took)} backdoored; {len(rows) - len(clean) - len(took)} left out: ASR below 80 %")
    for name in METHODS:
        honest = np.array([score_of(row, name)[0] for row in clean])
        bad = np.array([score_of(row, name)[0] for row in took])
        auc = float(np.mean(bad[:, None] > honest) + 0.5 * np.mean(bad[:, None] == honest)) if len(clean) else np.nan
        flagged = [row for row, score in zip(took, bad, strict=True) if score > honest.max(initial=-np.inf)]
        right = sum(score_of(row, name)[1] == row["attack"]["target"] for row in flagged)
        seconds = np.median([row[f"{name} seconds"] for row in rows])
        print(
            f"{name}: AUC {auc:.2f}; above every clean network {len(flagged)} of {len(took)}, target named {right}; "
            f"{seconds:.0f} s of CPU in the median"
        )
        for row in rows:
            score, label = score_of(row, name)
            attack = "clean" if row["attack"] is None else f"{row['attack']['name']} -> {row['attack']['target']}"
            print(f"    {row['data']:.20} {row['arch']:.30} {attack:20} {score:6.1f} class {label}")


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "show"))
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("witnesses.jsonl"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "show":
        show([json.loads(line) for path in args.paths for line in path.read_text().splitlines()])
        return
    lines = args.output.read_text().splitlines() if args.output.exists() else []
    done = {json.loads(line)["network"] for line in lines}
    for folder in args.paths:
        if folder.name not in done:
            row = measure(folder)
            with args.output.open("a") as out:
                out.write(json.dumps(row) + "\n")
            print(folder.name, {name: row[f"{name} seconds"] for name in METHODS}, flush=True)


if __name__ == "__main__":
    main()
