"""Writes docs/pairing.md: python tests/graph/pairing_table.py > docs/pairing.md (minutes; use one thread)."""

from __future__ import annotations

import platform
import sys
import warnings
from collections.abc import Callable, Mapping

import timm
import torch
import torchvision
from graph_networks import MERGING, NETWORKS, Row, build, compare
from graph_truth import is_layer, is_norm, watch
from torch import nn

from unbackdoor.graph.names import agreeing, partners

Entries = list[tuple[str, bool]]  # (path, whether it is a norm)

_HEAD = """# Which norm follows which layer, measured

Written by `python tests/graph/pairing_table.py > docs/pairing.md`; `tests/graph/test_graph_truth.py` holds the same
networks to it. {versions}.

The truth is watched, not derived: hooks on every module and a dispatch mode on every kernel write down, during one
forward pass in eval mode, which BatchNorm is called on the very tensor that a convolution or Linear put out, and
whether anything else reads that tensor's values (`tests/graph/graph_truth.py`, which knows nothing of the package).

- **fed**: BatchNorms that one layer alone feeds directly and that alone read it, the layer's weight being used as it is
  stored.
- **wrong**: paired with another layer. **missed**: fed and not paired. **extra**: paired though nothing alone feeds it.
- **silent**: layers that ran and are neither in the graph nor in its `uncovered`.
- **uncovered**: layers that the graph says it does not read: weight-standardised (nfnet, BiT), recurrent, bare
  parameters in a product.

## Totals

{totals}

## The rules that need no dataflow, on the same {fed:,} norms

{rules}

"Extra" counts norms that no layer alone feeds: behind a sum, a concatenation, an activation, or normalising more than
one layer. A wrong or extra pair gives a wrong score without any error; a missed one gives none. The package takes the
last rule alone where no tracer can follow the network and for files without an architecture, and says so.

Not counted as extra: {merging}, where a Linear's (N, L, C) is flattened to (N L, C) before the
norm. A test shows by arithmetic that they are pairs.

## Network by network

Milliseconds are processor time for `layer_graph` on a network that is built already, one thread, the best of three
calls, on a shared machine: read them as an order of magnitude.

| network | norms | fed | right | wrong | missed | extra | silent | uncovered | rule | ms |
|---|--:|--:|--:|--:|--:|--:|--:|--:|---|--:|
{rows}
"""


def last_registered(entries: Entries) -> dict[str, str]:
    """The published code's rule: the last layer registered before the norm."""
    pairs, last = {}, None
    for path, norm in entries:
        if not norm:
            last = path
        elif last is not None:
            pairs[path] = last
    return pairs


def by_name(entries: Entries) -> dict[str, str]:
    """bn1 -> conv1, 1 -> 0: where exactly one layer has such a name."""
    layers = {path for path, norm in entries if not norm}
    found = {path: partners(path) & layers for path, norm in entries if norm}
    return {path: min(names) for path, names in found.items() if len(names) == 1}


RULES: Mapping[str, Callable[[Entries], dict[str, str]]] = {
    "the last layer registered before it": last_registered,
    "the same on keys sorted by name": lambda entries: last_registered(sorted(entries)),
    "by name": by_name,
    "order, where names agree": agreeing,
}


def entries_of(model: nn.Module) -> Entries:
    """Layers and norms in the order of registration."""
    return [(path, is_norm(m)) for path, m in model.named_modules() if is_layer(m) or is_norm(m)]


def main() -> None:
    rows: list[Row] = []
    counts = {rule: [0, 0, 0, 0] for rule in RULES}  # right, wrong, missed, extra
    for arch in NETWORKS:
        model, batch = build(arch)
        row = compare(arch, model, watch(model, batch), repeats=3)
        rows.append(row)
        for rule, count in counts.items():
            pairs = RULES[rule](entries_of(model))
            right = sum(pairs.get(norm) == layer for norm, layer in row.fed.items())
            missed = len(row.fed.keys() - pairs.keys())
            extra = len((pairs.keys() - row.fed.keys()) & row.called - row.merged)
            for i, value in enumerate((right, len(row.fed) - right - missed, missed, extra)):
                count[i] += value
        print(arch, file=sys.stderr)
    fed = sum(len(row.fed) for row in rows)
    merged = {row.arch: len(row.merged) for row in rows if row.arch in MERGING}
    text = _HEAD.format(
        versions=f"Python {platform.python_version()}, torch {torch.__version__.partition('+')[0]}, "
        f"torchvision {torchvision.__version__.partition('+')[0]}, timm {timm.__version__}",
        totals=_totals(rows),
        fed=fed,
        rules="\n".join(
            [
                "| rule | right | wrong | missed | extra |",
                "|---|--:|--:|--:|--:|",
                f"| **dataflow (`layer_graph`)** | {_sum(rows, 'right')} | {_sum(rows, 'wrong')} | "
                f"{_sum(rows, 'missed')} | {_sum(rows, 'extra')} |",
                *(f"| {rule} | " + " | ".join(f"{x:,}" for x in count) + " |" for rule, count in counts.items()),
            ]
        ),
        merging=", ".join(f"{count} norms of {arch}" for arch, count in merged.items()),
        rows="\n".join(_row(row) for row in rows),
    )
    print(text, end="")


def _sum(rows: list[Row], column: str) -> str:
    return f"{sum(_count(row, column) for row in rows):,}"


def _count(row: Row, column: str) -> int:
    if column == "right":
        return len(row.fed) - len(row.wrong) - len(row.missed)
    value = getattr(row, column)
    return value if isinstance(value, int) else len(value)


_COLUMNS = ("norms", "fed", "right", "wrong", "missed", "extra", "silent", "uncovered")


def _totals(rows: list[Row]) -> str:
    names = " | ".join(_COLUMNS)
    sums = " | ".join(_sum(rows, column) for column in _COLUMNS)
    return f"| networks | {names} |\n|{'--:|' * 9}\n| {len(rows)} | {sums} |"


def _row(row: Row) -> str:
    cells = " | ".join(str(_count(row, column)) for column in _COLUMNS)
    note = f" ({len(row.merged)} more behind a flattening)" if row.merged else ""
    return f"| {row.arch}{note} | {cells} | {row.rule} | {row.milliseconds:.0f} |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    main()
