"""Writes docs/pairing.md: python tests/graph/pairing_table.py > docs/pairing.md (minutes; use one thread)."""

from __future__ import annotations

import platform
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import timm
import torch
import torchvision
from evidence_networks import KINDS, train
from graph_networks import MERGING, NETWORKS, Row, build, compare
from graph_truth import is_layer, is_norm, watch
from torch import Tensor, nn

from unbackdoor.api import open_model
from unbackdoor.graph.readers.names import agreeing, of_tensors, partners

SEEDS = (3, 4)
Entries = list[tuple[str, bool]]  # (path, whether it is a norm)

_HEAD = """# Which norm follows which layer, measured

LPP and CLP score a layer together with the BatchNorm that follows it. This page measures how well `layer_graph` pairs
the two.

## Totals

{totals}

- **fed**: BatchNorms that a single layer feeds directly, and that alone read that layer, whose weight is used as it is
  stored.
- **right**: fed, and paired with that layer.
- **wrong**: paired with another layer.
- **missed**: fed, but not paired.
- **extra**: paired, although no layer alone feeds it.
- **silent**: layers that ran, but are neither in the graph nor in its `uncovered`.
- **uncovered**: layers that the graph says it does not read: weight-standardised layers (nfnet, BiT), recurrent layers,
  bare parameters in a product.

The truth is observed, not derived. During one forward pass in eval mode, hooks on every module and a dispatch mode on
every kernel record two things: which BatchNorm receives the very tensor that a convolution or Linear returned, and
whether anything else reads that tensor's values. The observer, `tests/graph/graph_truth.py`, knows nothing of the
package.

`python tests/graph/pairing_table.py > docs/pairing.md` writes this page. `tests/graph/test_graph_truth.py` tests the
same networks. {versions}.

## Rules without dataflow, on the same {fed:,} norms

{rules}

"Extra" counts norms that no layer alone feeds. They follow a sum, a concatenation or an activation, or normalise more
than one layer. A wrong or extra pair gives a wrong score without any error. A missed pair gives no score. Norms behind
an activation are found apart (`Layer.behind`); they are part of the score, and no pairs of this table.

The package uses the last rule for files without an architecture, and where no tracer can follow the network. That rule
can offer {offered:.0%} of these norms. The package then edits a pair only if the statistics support it too. The
networks above cannot show that, because they are not trained.

## Whether the statistics support a pair

In the table above, names and order agree on no wrong pair. That is the custom of two packages, not a law. Two kinds of
network break it: pre-activation blocks that register the convolution first, and networks with an activation between
convolution and norm. So the package also tests whether the running means of the norm are what the weights before it
produce (`graph/evidence.py` describes the test).

The table counts pairs that names and order propose in the small networks of `tests/graph/evidence_networks.py`. They
were trained for 40 steps, with seeds {seeds}. Limits and rules were set on other networks, with other seeds. On the
networks in `zoo/`, trained to the end and stored in bfloat16, {zoo}.

| kind | right pairs | taken | wrong pairs | taken |
|---|--:|--:|--:|--:|
{evidence}

A right pair that is not taken is listed as not covered. A wrong pair that is taken would be edited. These limits
remain:

- If something besides the norm also reads a layer's output, the statistics still fit.
- They also fit if the channels act as a gate after the norm. Only the layer's name can then give it away.
- An activation whose inputs are so small that it is nearly linear counts as no activation.
- An InstanceNorm with running statistics has the keys of a BatchNorm and is taken for one. It computes the same at test
  time.

Not counted as extra: {merging}, where a Linear's (N, L, C) is flattened to (N L, C) before the norm. A test shows by
arithmetic that they are pairs.

## Network by network

Milliseconds are processor time for `layer_graph` on a network that is already built: one thread, the best of three
calls, on a shared machine. Read them as an order of magnitude.

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


def evidence_rows() -> str:
    """A line a kind of network: how many right and wrong pairs are proposed, and taken."""
    lines = []
    for name, kind in KINDS.items():
        counts = {True: [0, 0], False: [0, 0]}
        for seed in SEEDS:
            for layer, taken in _taken(train(name, seed).state_dict()).items():
                counts[kind.right(layer)][0] += 1
                counts[kind.right(layer)][1] += taken
        cells = (count for right in (True, False) for count in counts[right])
        lines.append(f"| {name} | " + " | ".join(map(str, cells)) + " |")
        print(name, file=sys.stderr)
    return "\n".join(lines)


def zoo_line() -> str:
    """How many of the pairs of the networks in zoo/ are taken, read without their architecture."""
    right = taken = wrong = 0
    for path in sorted((Path(__file__).parents[2] / "zoo").glob("*/model.safetensors")):
        file = open_model(path)
        assert file.arch is not None
        tensors = file.checkpoint.tensors
        state = {name: tensors[name] for name in file.arch.build(device="meta").state_dict() if name in tensors}
        found = {x.path: x.norm for x in of_tensors(state, ordered=True).layers if x.part == "hidden" and x.norm}
        right += len(file.graph.pairs)
        taken += sum(file.graph.pairs.get(layer) == norm for layer, norm in found.items())
        wrong += sum(file.graph.pairs.get(layer) != norm for layer, norm in found.items())
    return f"{taken} of {right} pairs are taken and {wrong} wrong ones"


def _taken(state: Mapping[str, Tensor]) -> dict[str, bool]:
    """Layer -> whether the pair that names and order propose for it is taken."""
    entries = [
        (name.rpartition(".")[0], name.endswith("running_mean"))
        for name, x in state.items()
        if name.endswith("running_mean") or (name.endswith("weight") and x.ndim > 1)
    ]
    taken = {x.path for x in of_tensors(state, ordered=True).layers if x.norm is not None and x.part == "hidden"}
    return {layer: layer in taken for layer in agreeing(entries).values()}


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
        offered=counts["order, where names agree"][0] / fed,
        seeds=" and ".join(map(str, SEEDS)),
        zoo=zoo_line(),
        evidence=evidence_rows(),
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
