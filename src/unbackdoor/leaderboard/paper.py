"""The printed figures of LPP's paper (submitted to ICLR 2025), tables 1 to 5 and the one of VGG19."""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from importlib import resources

#: Our names of things -> the paper's.
DATA = {"cifar10": "CIFAR-10", "gtsrb": "GTSRB", "tiny_imagenet": "Tiny ImageNet"}
ATTACKS = {"none": "none", "badnet": "BadNet", "bpp": "BPP", "inputaware": "Inputaware", "wanet": "WaNet"}
METHODS = {"none": "No Defence", "bnp": "BNP", "ibau": "I-BAU", "nad": "NAD", "clp": "CLP", "lpp": "LPP"}
NETWORKS = {"resnet18": "ResNet-18", "preactresnet18": "ResNet-18", "vgg19": "VGG19", "vgg19_bn": "VGG19"}
#: Presets that are readings of a method, of whichever source; others are methods of their own, which the paper has not.
READINGS = ("", "as_printed", "as_published", "backdoorbench")
#: Table 5's order, from the fastest, as the paper prints it.
ORDER = ("lpp", "clp", "bnp", "nad", "ibau")


@dataclass(frozen=True)
class Printed:
    """A cell of a printed table, in percent.

    Attributes:
        acc, asr: None where the paper gives none.
        note: what is doubtful about it, or "".
    """

    acc: float | None
    asr: float | None
    note: str = ""


def printed(
    table: str, data: str, arch: str, attack: str, rate: float | None, method: str, clean: float | None
) -> Printed | None:
    """What a table prints for a cell; None where it has no such cell.

    Args:
        table: T1, T2, T3, T4 or VGG, as a grid names it.
        data, arch, attack, method: our names; a preset behind "@" is another reading of the method.
        rate, clean: shares; methods without data stand in every share's half.
    """
    network = NETWORKS.get(arch.partition(":")[0])
    name, _, preset = method.partition("@")
    if preset not in READINGS:
        return None
    key = (table, DATA.get(data), network, ATTACKS.get(attack), METHODS.get(name))
    found = [row for row in _tables().get(key, ()) if _percent(rate) == float(row["poison_rate"])]
    if clean is not None and table != "T4":
        found = [row for row in found if not row["benign_rate"] or _percent(clean) == float(row["benign_rate"])]
    if not found:
        return None
    row = found[0]
    acc, asr = (float(row[name]) if row[name] else None for name in ("acc", "asr"))
    if row["note"].startswith("printed as ACC/ASR"):
        return Printed(
            None, acc, f"printed as ACC {acc:g}, ASR {asr:g}, probably shifted by one column; read as ASR and RA"
        )
    return Printed(acc, asr)


def printed_seconds(data: str, method: str) -> float | None:
    """Table 5's; the paper names neither the hardware nor what was timed."""
    return _times().get((DATA.get(data, ""), METHODS.get(method, "")))


def _percent(share: float | None) -> float:
    return 0.0 if share is None else round(100 * share, 6)


@functools.cache
def _tables() -> dict[tuple[str | None, ...], list[dict[str, str]]]:
    rows: dict[tuple[str | None, ...], list[dict[str, str]]] = {}
    for row in _read("tables.csv"):
        key = (row["table"], row["dataset"], row["model"], row["attack"], row["defence"])
        rows.setdefault(key, []).append(row)
    return rows


@functools.cache
def _times() -> dict[tuple[str, str], float]:
    return {(row["dataset"], row["defence"]): float(row["seconds"]) for row in _read("times.csv")}


def _read(name: str) -> list[dict[str, str]]:
    text = resources.files("unbackdoor.leaderboard").joinpath("printed", name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
