"""How much of a trained network LPP and CLP (at their defaults), and LPP by either norm cut: of layers, of channels.

    python studies/cut_shares.py [MODEL...] [--claims results/claims] [--out FILE]

Without MODEL, the zoo's networks. `--claims` adds the networks of a folder of claims (`bench report` writes them), of
which only the numbers of channels are kept. A report says so where more is pruned than in any of these
(`unbackdoor.findings.unusual`); nothing else is chosen by these figures. No data set is needed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from unbackdoor.api import scan
from unbackdoor.defences.data_free import CLP, LPP
from unbackdoor.graph import layer_graph
from unbackdoor.models import parse_arch
from unbackdoor.records import pretty

METHODS = {"lpp": LPP(), "lpp@either_norm": LPP.either_norm(), "clp": CLP()}
HERE = Path(__file__).resolve().parent


def of_file(path: Path) -> list[dict[str, Any]]:
    """One row a method."""
    rows = []
    for name, method in METHODS.items():
        report = scan(path, method=method)
        hit = sum(1 for layer in report.layers if layer.pruned)
        rows.append(
            {
                "network": path.parent.name,
                "arch": report.arch,
                "method": name,
                "layers": len(report.layers),
                "layers_pruned": hit,
                "channels": report.channels,
                "pruned": report.pruned,
                "shrunk": report.scaled,
            }
        )
    return rows


def of_claims(folder: Path) -> list[dict[str, Any]]:
    """One row a network and method, of the claims of these methods."""
    rows, channels = [], {}
    for file in sorted(folder.glob("*/*.json")):
        claim = json.loads(file.read_text())
        if isinstance(claim, dict) and claim.get("kind") == "repair" and claim["method"] in METHODS:
            arch = claim["arch"]
            if arch not in channels:
                layers = layer_graph(parse_arch(arch).build(device="meta")).layers
                channels[arch] = sum(layer.out_channels for layer in layers if layer.norm is not None)
            rows.append(
                {
                    "network": " ".join(str(claim[key]) for key in ("data", "attack", "rate", "seed")),
                    "arch": arch,
                    "method": claim["method"],
                    "layers": None,
                    "layers_pruned": None,
                    "channels": channels[arch],
                    "pruned": claim["pruned"],
                    "shrunk": claim["scaled"],
                }
            )
    return rows


def largest(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The largest of each share."""
    layered = [row for row in rows if row["layers"]]
    return {
        "layers": max(row["layers_pruned"] / row["layers"] for row in layered),
        "channels": max(row["pruned"] / row["channels"] for row in rows),
        "shrunk": max(row["shrunk"] / row["channels"] for row in rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL")
    parser.add_argument("--claims", type=Path)
    parser.add_argument("--out", type=Path, default=HERE / "cut_shares.json")
    options = parser.parse_args()
    files = options.models or sorted((HERE.parent / "zoo").glob("*/model.safetensors"))
    rows = [row for file in files for row in of_file(file)]
    print("| network | method | layers with a pruned channel | channels pruned | channels shrunk |")
    print("|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['network']} | {row['method']} | {row['layers_pruned']} of {row['layers']} "
            f"({row['layers_pruned'] / row['layers']:.0%}) | {row['pruned']} of {row['channels']:,} "
            f"({row['pruned'] / row['channels']:.2%}) | {row['shrunk'] / row['channels']:.2%} |"
        )
    rows += of_claims(options.claims) if options.claims else []
    found = {name: largest([row for row in rows if row["method"] == name]) for name in METHODS}
    for name, shares in found.items():
        count = sum(1 for row in rows if row["method"] == name)
        print(f"{name}, {count} measurements, at most: " + ", ".join(f"{k} {v:.2%}" for k, v in shares.items()))
    options.out.write_text(pretty({"largest": found, "networks": rows}))
    print(options.out, file=sys.stderr)


if __name__ == "__main__":
    main()
