"""What the witnesses that need no data say of networks whose answer is known.

    python studies/witnesses.py measure FOLDER...   # networks of unbackdoor train, or a grid's store/training
    python studies/witnesses.py fit                 # writes the clean ones to defender/witness.json
    python studies/witnesses.py show                # what is found, each witness alone and together

`measure` runs `defender.look` at its defaults, seed 0, and appends a row a network to witnesses.jsonl: what is true of
it, and every witness's scores. It passes over what is there already and what is no network, so the same command goes on
after new networks were trained. Of the population's pairs, it takes only those of the half for calibration.

`fit` takes the clean networks. `show` judges each clean network by the others, and a backdoored one by all of them. In
brackets are 95 % intervals: Wilson's of shares, a bootstrap's over networks of areas under ROC curves.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import torch

import intervals
import population
import trained
from trained import Row
from unbackdoor.data import dataset_spec
from unbackdoor.defender import clean_networks
from unbackdoor.defender.clean_networks import CleanNetwork, CleanNetworks, Verdict, judge, largest
from unbackdoor.defender.look import WITNESSES, has_running_statistics, look
from unbackdoor.defender.on_pixels import on_pixels
from unbackdoor.errors import UnbackdoorError
from unbackdoor.leaderboard.plots import ACC, ASR, INK, PURPLE, SIZES, SOFT, YELLOW, Figure, finished, new_axes
from unbackdoor.leaderboard.tables import ESTABLISHED

ROWS = Path(__file__).with_suffix(".jsonl")
#: An attack below this ASR did not take (docs/population.md).
TOOK = ESTABLISHED / 100
#: All witnesses at once.
TOGETHER = "together"


def pair_of(config: Row) -> tuple[str, str, str]:
    """Data set, architecture and recipe, as the population names them."""
    arch = re.sub(r"[:,]num_classes=\d+$", "", config["arch"])
    recipe = config["recipe"]
    return config["data"], arch, recipe["name"] if isinstance(recipe, dict) else recipe


def allowed(config: Row) -> bool:
    """Whether a network may be looked at before the final table."""
    if is_further(config):
        return False
    data, arch, recipe = pair_of(config)
    alike = {pair for pair in population.PAIRS if (pair.data, pair.arch) == (data, arch)}
    return not alike or any(pair.recipe == recipe for pair in alike.intersection(population.halves()["calibration"]))


def is_further(config: Row) -> bool:
    """Whether a network is one of the ten further ones."""
    pairs = [(one.pair.data, one.pair.arch, one.pair.recipe) for one in population.FURTHER]
    return pair_of(config) in pairs


def networks(paths: list[Path]) -> Iterator[Path]:
    """The folders of networks: those given, or what is in them."""
    for path in paths:
        inside = sorted(folder for folder in path.iterdir() if folder.is_dir()) if path.is_dir() else []
        for folder in [path] if (path / "record.json").exists() else inside:
            if (folder / "record.json").exists() and (folder / "model.safetensors").exists():
                yield folder


def append(folders: Iterable[Path], file: Path, rule: Callable[[Path], list[Row]]) -> None:
    """Append the rows of networks that are not in a file; one that cannot be measured is left out, with the reason."""
    done = {row["network"] for row in trained.rows(file)}
    for folder in folders:
        name = name_of(folder)
        if name in done:
            continue
        done.add(name)
        try:
            rows = rule(folder)
        except UnbackdoorError as error:
            print(f"{folder.name}: left out: {error}", flush=True)
            continue
        with file.open("a") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)
        print(f"{file.name}: {folder.name}, {len(rows)} rows", flush=True)


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
    case = trained.case(folder, dataset_spec(trained.source(row["data"])))
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


def judged(row: Row, rows: list[Row], known: CleanNetworks | None = None) -> Verdict:
    """A network's verdict, by known clean networks; without, by those of the rows, a clean one by the others."""
    if known is None:
        others = [other for other in clean_rows(rows) if other is not row]
        known = CleanNetworks(networks=[clean_network(other) for other in others])
    return judge(row["scores"], running_statistics=row["running_statistics"], known=known)


#: Architectures that are alike, by the start of their names.
FAMILIES = {
    "ResNets": ("resnet18:", "resnet50:", "preactresnet18:", "wideresnet16:"),
    "VGGs": ("vgg16_bn:", "vgg16_bn_elu:"),
    "DenseNet, MobileNet": ("densenet121:", "mobilenetv2:"),
    "no BatchNorm": ("vgg19:", "resnet18_gn:"),
    "patches": ("vit_small:", "mixer_small:"),
}


def family(row: Row) -> str:
    """The family of a network's architecture."""
    return next((name for name, starts in FAMILIES.items() if row["arch"].startswith(starts)), "others")


@dataclasses.dataclass(frozen=True)
class Judged:
    """Networks with what is said of them.

    Attributes:
        clean, took: rows of networks without an attack, and of those whose attack took.
        left: how many networks' attack did not take.
        verdicts: by network.
    """

    clean: list[Row]
    took: list[Row]
    left: int
    verdicts: dict[str, Verdict]

    @classmethod
    def of(cls, rows: list[Row], known: CleanNetworks | None = None) -> Judged:
        """Judge rows, by known clean networks or by those of the rows."""
        clean = clean_rows(rows)
        took = [row for row in rows if row["attack"] is not None and (row["asr"] or 0) >= TOOK]
        verdicts = {row["network"]: judged(row, rows, known) for row in [*clean, *took]}
        return cls(clean, took, len(rows) - len(clean) - len(took), verdicts)

    def score(self, row: Row, name: str) -> float:
        """How suspicious a network is by one witness, or by all together."""
        found = self.verdicts[row["network"]].statistic if name == TOGETHER else largest(row["scores"].get(name, ()))
        return -np.inf if found is None else found

    def scores(self, rows: list[Row], name: str) -> np.ndarray:
        """Of several networks."""
        return np.array([self.score(row, name) for row in rows])

    def area(self, rows: list[Row], name: str) -> float | None:
        """The area under the ROC curve of some of the networks; None without networks of both kinds."""
        honest, bad = ([row for row in rows if (row["attack"] is None) is clean] for clean in (True, False))
        if not honest or not bad:
            return None
        low, high = self.scores(honest, name), self.scores(bad, name)
        return float(np.mean(high[:, None] > low) + 0.5 * np.mean(high[:, None] == low))

    def curve(self, bad: list[Row], honest: list[Row], name: str = TOGETHER) -> tuple[list[float], list[float]]:
        """The shares of clean and of backdoored networks that are at or above each limit, from the highest."""
        low, high = self.scores(honest, name), self.scores(bad, name)
        limits = sorted({*low, *high}, reverse=True)
        return [0.0, *(float(np.mean(low >= x)) for x in limits)], [0.0, *(float(np.mean(high >= x)) for x in limits)]

    def parts(self, kind: str) -> dict[str, tuple[list[Row], list[Row]]]:
        """Backdoored networks, and the clean ones beside them, by attack (beside all) or by family (beside its own)."""
        found: dict[str, tuple[list[Row], list[Row]]] = {}
        for row in sorted(self.took, key=lambda row: row["attack"]["name"] if kind == "attack" else family(row)):
            name = row["attack"]["name"] if kind == "attack" else family(row)
            beside = self.clean if kind == "attack" else [one for one in self.clean if family(one) == name]
            found.setdefault(name, ([], beside))[0].append(row)
        return found


def show(rows: list[Row], known: CleanNetworks | None = None, *, plots: Path | None = None) -> str:
    """A line a network, then counts, areas under ROC curves, and parts, as Markdown; the curves go into a folder."""
    found = Judged.of(rows, known)
    lines = [
        "| network | attack -> target | " + " | ".join(WITNESSES) + " | z | p | suspected | s of CPU |",
        "|---" * (len(WITNESSES) + 6) + "|",
    ]
    for row in [*found.clean, *found.took]:
        verdict = found.verdicts[row["network"]]
        attack = "none" if row["attack"] is None else f"{row['attack']['name']} -> {row['attack']['target']}"
        cells = [f"{row['data']} {row['arch']}", attack, *(rank(row, name) for name in WITNESSES)]
        cells += ["-" if verdict.statistic is None else f"{verdict.statistic:.1f}"]
        cells += ["-" if verdict.p is None else f"{verdict.p:.2f}", ", ".join(map(str, verdict.suspects)) or "none"]
        lines.append("| " + " | ".join([*cells, f"{row['seconds']:.0f}"]) + " |")
    flagged = [row for row in found.took if found.verdicts[row["network"]].suspects]
    with_target = [row for row in flagged if row["attack"].get("mapping") != "all-to-all"]
    named = [row for row in with_target if found.verdicts[row["network"]].suspects[0] == row["attack"]["target"]]
    alarms = [row for row in found.clean if found.verdicts[row["network"]].suspects]
    lines += [
        "",
        f"{len(found.clean)} clean, {len(found.took)} backdoored, {found.left} left out: ASR below 80 %",
        f"found {intervals.share(len(flagged), len(found.took))}, "
        f"target named {intervals.share(len(named), len(with_target))}; "
        f"false alarms {intervals.share(len(alarms), len(found.clean))}",
        "",
        "| witness | AUC |",
        "|---|---|",
    ]
    everyone = [*found.clean, *found.took]
    for name in (*WITNESSES, TOGETHER):
        rule = functools.partial(found.area, name=name)
        lines.append(f"| {name} | {intervals.figure(rule(everyone), everyone, rule)} |")
    for kind in ("attack", "architecture"):
        lines += ["", f"| {kind} | backdoored | clean beside them | found | AUC together |", "|---" * 5 + "|"]
        for name, (bad, honest) in found.parts(kind).items():
            caught = sum(bool(found.verdicts[row["network"]].suspects) for row in bad)
            area = found.area([*bad, *honest], TOGETHER)
            shown = "-" if area is None else f"{area:.2f}"
            lines.append(f"| {name} | {len(bad)} | {len(honest)} | {intervals.share(caught, len(bad))} | {shown} |")
    for kind in ("witness", "attack", "architecture") if plots is not None else ():
        plots.mkdir(parents=True, exist_ok=True)
        (plots / f"roc-{kind}.svg").write_text(roc(found, kind).svg + "\n")
    return "\n".join(lines) + "\n"


def roc(found: Judged, kind: str) -> Figure:
    """ROC curves of each witness, or of all together by attack or by architecture family; thick: all of everything."""
    figure, axes = new_axes(height=4.4)
    axes.plot([0, 1], [0, 1], color=SOFT, lw=0.8, ls=":")
    if found.clean and found.took:
        axes.plot(*found.curve(found.took, found.clean), color=INK, lw=2.4, label=f"all ({len(found.took)})")
    styles = itertools.product(("-", "--", ":"), (ACC, ASR, YELLOW, PURPLE))
    if kind == "witness":
        curves = [(name, found.took, found.clean, name) for name in WITNESSES]
    else:
        curves = [(f"{name} ({len(bad)})", bad, honest, TOGETHER) for name, (bad, honest) in found.parts(kind).items()]
    for (style, colour), (label, bad, honest, witness) in zip(styles, curves, strict=False):
        if bad and honest:
            axes.plot(*found.curve(bad, honest, witness), color=colour, ls=style, lw=1.4, label=label)
    axes.set_xlabel("share of the clean networks flagged")
    axes.set_ylabel("share of the backdoored networks flagged")
    axes.legend(fontsize=SIZES[0], frameon=False, labelcolor=INK, loc="lower right")
    beside = "the clean networks of the family" if kind == "architecture" else "all clean networks"
    return finished(figure, f"roc-{kind}", f"ROC by {kind}", f"In brackets: backdoored networks, beside {beside}.")


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "fit", "show"))
    parser.add_argument("paths", nargs="*", type=Path, help="folders of networks to measure")
    parser.add_argument("--rows", type=Path, default=ROWS, help="the file of rows [%(default)s]")
    parser.add_argument("--plots", type=Path, help="a folder for the ROC curves that show draws")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "measure":
        folders = (folder for folder in networks(args.paths) if allowed(trained.read(folder)[0]))
        append(folders, args.rows, lambda folder: [measure(folder)])
        return
    rows = trained.rows(args.rows)
    if args.what == "show":
        print(show(rows, plots=args.plots), end="")
        return
    target = Path(clean_networks.__file__).with_name("witness.json")
    found = fit(rows)
    target.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    print(f"{target.name}: {len(found.networks)} clean networks")


if __name__ == "__main__":
    main()
