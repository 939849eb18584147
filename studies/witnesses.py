"""What the witnesses that need no data say of networks whose answer is known.

    python studies/witnesses.py measure FOLDER...   # networks of unbackdoor train, or a grid's store/training
    python studies/witnesses.py fit                 # writes the clean ones to defender/witness.json
    python studies/witnesses.py show                # what is found, each witness alone and together

`measure` runs `defender.look` at its defaults, seed 0, and appends a row a network to witnesses.jsonl: what is true of
it, and every witness's scores. It passes over what is there already and what is no network, so the same command goes on
after new networks were trained. Of the population's pairs, it takes only those of the half for calibration.

`fit` takes the clean networks. `show` judges each clean network by the others, and a backdoored one by all of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

import population
import trained
from trained import Row
from unbackdoor.api.images import case_with_network
from unbackdoor.api.reading import open_model
from unbackdoor.data import dataset_spec
from unbackdoor.defender import clean_networks
from unbackdoor.defender.clean_networks import CleanNetwork, CleanNetworks, judge, largest
from unbackdoor.defender.look import WITNESSES, has_running_statistics, look
from unbackdoor.defender.on_pixels import on_pixels
from unbackdoor.errors import UnbackdoorError

ROWS = Path(__file__).with_suffix(".jsonl")
#: An attack below this ASR did not take (docs/population.md).
TOOK = 0.8
#: The population's part of Tiny ImageNet.
SLICE = "runs/population/data.toml:tiny20"


def pair_of(config: Row) -> tuple[str, str, str]:
    """Data set, architecture and recipe, as the population names them."""
    arch = ",".join(part for part in config["arch"].split(",") if not part.startswith("num_classes="))
    recipe = config["recipe"]
    return config["data"], arch, recipe["name"] if isinstance(recipe, dict) else recipe


def allowed(config: Row) -> bool:
    """Whether a network may be looked at before the final table."""
    data, arch, recipe = pair_of(config)
    alike = {pair for pair in population.PAIRS if (pair.data, pair.arch) == (data, arch)}
    return not alike or any(pair.recipe == recipe for pair in alike.intersection(population.halves()["calibration"]))


def networks(paths: list[Path]) -> Iterator[Path]:
    """The folders of networks: those given, or what is in them."""
    for path in paths:
        inside = sorted(folder for folder in path.iterdir() if folder.is_dir()) if path.is_dir() else []
        for folder in [path] if (path / "record.json").exists() else inside:
            if (folder / "record.json").exists() and (folder / "model.safetensors").exists():
                yield folder


def name_of(folder: Path) -> str:
    """The same wherever the repository or the store is."""
    return f"{folder.resolve().parent.name}/{folder.resolve().name}"


def truth(folder: Path) -> Row:
    """What a record says of a network."""
    config, rates = trained.read(folder)
    attack, rate = config["attack"], rates.get("asr")
    data, arch, recipe = pair_of(config)
    return {
        "network": name_of(folder),
        "data": data,
        "arch": arch,
        "recipe": recipe,
        "seed": config["seed"],
        "attack": attack,
        "acc": rates["acc"]["hits"] / rates["acc"]["total"],
        "asr": rate["hits"] / rate["total"] if rate else None,
    }


def measure(folder: Path) -> Row:
    """The row of one network."""
    row = truth(folder)
    spec = dataset_spec(SLICE if row["data"] == "tiny20" else row["data"])
    case = case_with_network(
        open_model(folder / "model.safetensors"),
        device="cpu",
        seed=0,
        example=torch.zeros(2, spec.channels, spec.size, spec.size),
        output=None,
        progress=lambda _done, _total, _note: None,
    )
    case = dataclasses.replace(case, spec=spec)
    started = time.process_time()
    with case.working("witness") as model:
        shown, _note = on_pixels(case, model)
        found = look(shown, case.layers(), case.rng, known=CleanNetworks(networks=[]))
        row["classes"] = shown.classes
        row["running_statistics"] = has_running_statistics(model)
    row["seconds"] = round(time.process_time() - started, 1)
    row["scores"] = {name: list(values) for name, values in found.scores.items()}
    row["values"] = {name: list(values) for name, values in found.values.items()}
    row["missing"] = dict(found.missing)
    return row


def clean_network(row: Row) -> CleanNetwork:
    """A clean network's row, as the package keeps it."""
    found = {name: largest(row["scores"].get(name, ())) for name in WITNESSES}
    return CleanNetwork(
        data=row["data"],
        arch=row["arch"],
        classes=row["classes"],
        running_statistics=row["running_statistics"],
        largest={name: None if value is None else round(value, 4) for name, value in found.items()},
    )


def clean_rows(rows: list[Row]) -> list[Row]:
    """Those without an attack, in an order that does not depend on the files'."""
    kept = [row for row in rows if row["attack"] is None]
    return sorted(kept, key=lambda row: (row["data"], row["arch"], row["recipe"], row["seed"], row["network"]))


def fit(rows: list[Row]) -> CleanNetworks:
    """The clean networks of the rows."""
    return CleanNetworks(networks=[clean_network(row) for row in clean_rows(rows)])


def rank(row: Row, name: str) -> str:
    """Where the attacker's class stands by one witness, from 1; of a clean network its highest class."""
    scores = row["scores"].get(name)
    if scores is None:
        return "-"
    values = np.array([-np.inf if score is None else score for score in scores])
    if row["attack"] is None:
        return f"{values.max():.1f} (class {values.argmax()})"
    target = row["attack"]["target"]
    return f"{values[target]:.1f} (rank {1 + int((values > values[target]).sum())})"


def judged(row: Row, rows: list[Row]) -> Any:
    """A network's verdict; a clean one is judged by the other clean ones."""
    others = [other for other in clean_rows(rows) if other is not row]
    known = CleanNetworks(networks=[clean_network(other) for other in others])
    return judge(row["scores"], running_statistics=row["running_statistics"], known=known)


def show(rows: list[Row]) -> None:
    """A line a network, then the counts."""
    clean = clean_rows(rows)
    took = [row for row in rows if row["attack"] is not None and (row["asr"] or 0) >= TOOK]
    print("| network | attack -> target | " + " | ".join(WITNESSES) + " | z | p | suspected | s of CPU |")
    print("|---" * (len(WITNESSES) + 6) + "|")
    verdicts = {}
    for row in [*clean, *took]:
        verdicts[row["network"]] = found = judged(row, rows)
        attack = "none" if row["attack"] is None else f"{row['attack']['name']} -> {row['attack']['target']}"
        cells = [f"{row['data']} {row['arch']}", attack, *(rank(row, name) for name in WITNESSES)]
        cells += ["-" if found.statistic is None else f"{found.statistic:.1f}"]
        cells += ["-" if found.p is None else f"{found.p:.2f}", ", ".join(map(str, found.suspects)) or "none"]
        print("| " + " | ".join([*cells, f"{row['seconds']:.0f}"]) + " |")
    flagged = [row for row in took if verdicts[row["network"]].suspects]
    named = [row for row in flagged if verdicts[row["network"]].suspects[0] == row["attack"]["target"]]
    alarms = [row for row in clean if verdicts[row["network"]].suspects]
    print(
        f"\n{len(clean)} clean, {len(took)} backdoored, {len(rows) - len(clean) - len(took)} left out: ASR below 80 %"
    )
    print(f"found {len(flagged)} of {len(took)}, target named {len(named)}; false alarms {len(alarms)} of {len(clean)}")
    for name in WITNESSES:
        honest, bad = (np.array([largest(row["scores"].get(name, ())) or 0.0 for row in of]) for of in (clean, took))
        if len(honest) and len(bad):
            auc = float(np.mean(bad[:, None] > honest) + 0.5 * np.mean(bad[:, None] == honest))
            print(f"{name} alone: AUC {auc:.2f}")


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "fit", "show"))
    parser.add_argument("paths", nargs="*", type=Path, help="folders of networks to measure")
    parser.add_argument("--rows", type=Path, default=ROWS, help="the file of rows [%(default)s]")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "measure":
        lines = args.rows.read_text().splitlines() if args.rows.exists() else []
        done = {json.loads(line)["network"] for line in lines}
        for folder in networks(args.paths):
            name = name_of(folder)
            if name in done or not allowed(trained.read(folder)[0]):
                continue
            done.add(name)
            try:
                row = measure(folder)
            except UnbackdoorError as error:
                print(f"{folder.name}: left out: {error}", flush=True)
                continue
            with args.rows.open("a") as out:
                out.write(json.dumps(row) + "\n")
            print(row["network"], row["seconds"], row["missing"], flush=True)
        return
    rows = [json.loads(line) for line in args.rows.read_text().splitlines()]
    if args.what == "show":
        show(rows)
        return
    target = Path(clean_networks.__file__).with_name("witness.json")
    found = fit(rows)
    target.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    print(f"{target.name}: {len(found.networks)} clean networks")


if __name__ == "__main__":
    main()
