"""`unbackdoor inspect`: tensors, layers and pairs, as text and as JSON; exit codes 0, 2 and 3."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from cli_runs import PACKAGED, refuse, run
from unbackdoor import checkpoint
from unbackdoor.models import parse_arch

Build = Callable[..., nn.Module]


def test_the_packaged_network() -> None:
    done = run("inspect", PACKAGED)
    assert (done.code, done.err) == (0, "")
    assert f"{PACKAGED}: safetensors, 122 tensors" in done.out
    assert "network: resnet18:width=16,num_classes=10" in done.out
    assert "classifier: fc" in done.out
    assert "bn1 (arch)" in done.out


def test_as_json(tiny_net: Build, tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in tiny_net().state_dict().items()}
    torch.save({"net": state, "epoch": 3}, tmp_path / "m.pt")
    done = run("inspect", tmp_path / "m.pt", "--format", "json")
    assert done.code == 0
    record = json.loads(done.out)
    assert (record["schema_version"], record["format"], record["key"], record["prefix"]) == (
        1,
        "torch",
        "net",
        "module.",
    )
    assert record["arch"] is None
    assert record["tensors"][0] == {"name": "conv1.weight", "shape": [4, 3, 3, 3], "dtype": "float32"}
    pairs = {layer["path"]: (layer["norm"], layer["rule"]) for layer in record["layers"]}
    assert pairs == {"conv1": ("bn1", "names"), "conv2": ("bn2", "names"), "fc": (None, "names")}
    text = run("inspect", tmp_path / "m.pt").out
    assert "state dict under 'net'" in text
    assert "every name begins with 'module.', left out here" in text


def test_every_tensor_is_listed_when_wanted() -> None:
    assert "bfloat16" not in run("inspect", PACKAGED).out
    assert "  fc.weight  " in run("inspect", PACKAGED, "--tensors").out


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_could_not_be_paired(tmp_path: Path, form: str) -> None:
    checkpoint.save(tmp_path / "m.safetensors", parse_arch("preactresnet18:width=2").build().state_dict())
    first, second = (run("inspect", tmp_path / "m.safetensors", "--format", form) for _ in range(2))
    assert (first.code, first) == (3, second)
    assert run("inspect", tmp_path / "m.safetensors", "--arch", "preactresnet18:width=2").code == 0


@pytest.mark.parametrize("form", ["text", "json"])
def test_hostile_names_and_strings(tmp_path: Path, form: str) -> None:
    name = "\x1b[2J\u202e\nname"
    path = tmp_path / "m.safetensors"
    checkpoint.save(path, {f"{name}.weight": torch.ones(4, 4, 1, 1)}, metadata={"note": name, "unbackdoor.arch": name})
    done = run("inspect", path, "--format", form, "--tensors")
    assert "\x1b" not in done.out
    assert "\u202e" not in done.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Missing argument 'PATH'"),
        (["missing.pt"], "the file does not exist"),
        (["."], "got a folder"),
        ([PACKAGED, PACKAGED], "unexpected extra argument"),
        ([PACKAGED, "--format", "html"], "--format"),
        ([PACKAGED, "--arch", "resnet18"], "is not resnet18: tensors of another shape"),
    ],
)
def test_what_is_typed_wrong(words: list[object], message: str) -> None:
    assert message in refuse("inspect", *words)
