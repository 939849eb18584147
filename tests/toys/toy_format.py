"""A toy: a kind of model file that says which layers it holds, whatever its tensors are called. One file, as any new
kind is: it registers itself.

    TOY MODEL
    {"layers": [{"name", "kind", "weight", "bias", "norm": [weight, bias, mean, var] or null}, ...],
     "tensors": {name: values}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unbackdoor.atomic import atomic_write
from unbackdoor.checkpoint.checkpoint import Checkpoint, Contents
from unbackdoor.checkpoint.format import FORMATS
from unbackdoor.errors import CheckpointError, OutputError
from unbackdoor.graph.layer import Layer, LayerGraph, Norm

MAGIC = b"TOY MODEL\n"


class ToyFormat:
    """Text, for the eye."""

    suffixes = (".toy",)
    nested = False

    def recognises(self, head: bytes, path: Path) -> bool:
        return head.startswith(MAGIC)

    def read(self, path: Path) -> Contents:
        try:
            record = json.loads(path.read_bytes().removeprefix(MAGIC))
            tensors = {name: torch.tensor(values) for name, values in record["tensors"].items()}
            content = {"layers": record["layers"], "tensors": tensors}
            graph = _graph(record["layers"], tensors)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path}: not a readable toy: {error}") from error
        return Contents(path, "toy", content, {"": ("tensors",)}, ordered=True, graph=graph)

    def write(
        self,
        path: Path,
        state: Mapping[str, Any],
        *,
        like: Checkpoint | None,
        metadata: Mapping[str, str],
        overwrite: bool,
    ) -> None:
        if like is None or like.format != "toy":
            raise OutputError(f"{path}: a toy must say its layers, which these tensors do not")
        tensors = {name: value.tolist() for name, value in state.items() if isinstance(value, Tensor)}
        with atomic_write(path, overwrite=overwrite) as stream:
            stream.write(MAGIC + json.dumps({"layers": like.container["layers"], "tensors": tensors}).encode())

    def kept(self, like: Checkpoint) -> tuple[str, ...]:
        return ()

    def lost(self, like: Checkpoint) -> tuple[str, ...]:
        return ()


def _graph(rows: list[dict[str, Any]], tensors: Mapping[str, Tensor]) -> LayerGraph:
    layers, norms = [], {}
    for row in rows:
        if row["norm"] is not None:
            weight, bias, mean, var = row["norm"]
            path = f"{row['name']}.norm"
            channels = len(tensors[weight])
            norms[path] = Norm(path=path, channels=channels, weight=weight, bias=bias, mean=mean, var=var, eps=1e-5)
        layers.append(
            Layer(
                path=row["name"],
                kind=row["kind"],
                out_channels=len(tensors[row["weight"]]),
                norm=None if row["norm"] is None else path,
                rule="toy",
                weight=row["weight"],
                bias=row["bias"],
                part="hidden" if row is not rows[-1] else "answer",
            )
        )
    last = layers[-1].path
    return LayerGraph(layers=tuple(layers), norms=norms, unpaired_norms=(), classifier=last, outputs=(last,))


FORMATS.add("toy", ToyFormat())
