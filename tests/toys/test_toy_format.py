"""A new kind of model file is one new file: scan and repair read and write it, by the layers that it says."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from unbackdoor import checkpoint, cli, repair, scan
from unbackdoor.checkpoint.format import FORMATS
from unbackdoor.errors import CheckpointError, OutputError

MAGIC = b"TOY MODEL\n"
ROWS = [
    {"name": "see", "kind": "Conv2d", "weight": "q", "bias": None, "norm": ["w", "e", "r", "t"]},
    {"name": "tell", "kind": "Linear", "weight": "y", "bias": "u", "norm": None},
]


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The format is known during a test, and not behind it."""
    monkeypatch.setattr(FORMATS, "_entries", dict(FORMATS._entries))
    monkeypatch.delitem(sys.modules, "toy_format", raising=False)
    importlib.import_module("toy_format")


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """Sixteen channels alike, but for the third, whose weights are fifty times as large."""
    generator = torch.Generator().manual_seed(1)
    conv = torch.randn(16, 3, 3, 3, generator=generator)
    conv /= conv.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * torch.linspace(0.95, 1.05, 16).view(-1, 1, 1, 1)
    conv[2] *= 50
    tensors = {"q": conv, "w": torch.ones(16), "e": torch.zeros(16), "r": torch.zeros(16), "t": torch.ones(16)}
    tensors |= {"y": torch.randn(4, 16, generator=generator), "u": torch.zeros(4)}
    return write(tmp_path / "m.toy", {name: tensor.tolist() for name, tensor in tensors.items()})


def write(path: Path, tensors: dict[str, list[float]], rows: list[dict[str, object]] | None = None) -> Path:
    path.write_bytes(MAGIC + json.dumps({"layers": rows or ROWS, "tensors": tensors}).encode())
    return path


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """The exit code of `unbackdoor WORDS...`."""
    monkeypatch.setattr(sys, "argv", ["unbackdoor", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def test_a_scan_goes_by_the_layers_that_the_file_says(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = scan(toy)
    assert [(layer.path, layer.rule, layer.norm, layer.pruned) for layer in report.layers] == [
        ("see", "toy", "see.norm", (2,))
    ]
    assert command(monkeypatch, "scan", toy) == 1
    assert "see" in capsys.readouterr().out


def test_a_repair_writes_one_of_the_kind(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = toy.read_bytes()
    assert command(monkeypatch, "repair", toy, "-o", tmp_path / "out.toy") == 0
    assert toy.read_bytes() == before
    written = (tmp_path / "out.toy").read_bytes()
    assert written.startswith(MAGIC)
    assert json.loads(written.removeprefix(MAGIC))["layers"] == ROWS
    old, new = checkpoint.load(toy).tensors, checkpoint.load(tmp_path / "out.toy").tensors
    changed = (old["q"] != new["q"]).flatten(1).any(1) | (old["w"] != new["w"]) | (old["e"] != new["e"])
    assert changed.nonzero().flatten().tolist() == [2]
    assert torch.equal(old["u"], new["u"])
    assert [layer.pruned_high for layer in scan(tmp_path / "out.toy").layers] == [()]


def test_into_another_kind_its_layers_are_lost_and_this_is_said(toy: Path, tmp_path: Path) -> None:
    report = repair(toy, tmp_path / "out.safetensors")
    assert [remark.path for remark in report.left_alone if remark.kind == "entry"] == ["layers"]
    assert checkpoint.load(tmp_path / "out.safetensors").tensors.keys() == checkpoint.load(toy).tensors.keys()


def test_what_the_kind_cannot_hold_and_a_damaged_file(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="a toy must say its layers"):
        checkpoint.save(tmp_path / "x.toy", {"a": torch.ones(2)})
    with pytest.raises(OutputError, match=r"\.safetensors, .*, \.toy, got '.onnx'"):
        checkpoint.save(tmp_path / "x.onnx", {"a": torch.ones(2)})
    with pytest.raises(CheckpointError, match="--key a: a toy file holds one state dict only"):
        scan(toy, key="a")
    tensors = json.loads(toy.read_bytes().removeprefix(MAGIC))["tensors"]
    broken = write(tmp_path / "b.toy", {name: value for name, value in tensors.items() if name != "u"})
    with pytest.raises(CheckpointError, match="its layers name tensors that it does not hold: u"):
        scan(broken)
    broken.write_bytes(MAGIC + b"[")
    with pytest.raises(CheckpointError, match="not a readable toy"):
        scan(broken)
