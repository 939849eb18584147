"""`unbackdoor diff`: exit codes 0, 1 and 2; bit by bit, whatever the dtype."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cli_runs import PACKAGED, refuse, run
from unbackdoor import checkpoint

Build = Callable[..., nn.Module]


def _save(folder: Path, a: dict[str, Tensor], b: dict[str, Tensor], suffix: str = "pt") -> tuple[Path, Path]:
    paths = (folder / f"a.{suffix}", folder / f"b.{suffix}")
    for path, tensors in zip(paths, (a, b), strict=True):
        torch.save(tensors, path) if suffix == "pt" else checkpoint.save(path, tensors)
    return paths


def test_no_difference(tiny_net: Build, tmp_path: Path) -> None:
    state = tiny_net().state_dict()
    checkpoint.save(tmp_path / "a.pt", state)
    checkpoint.save(tmp_path / "b.safetensors", state)
    done = run("diff", tmp_path / "a.pt", tmp_path / "b.safetensors")
    assert (done.code, done.out, done.err) == (0, "no difference\n", "")
    done = run("diff", tmp_path / "a.pt", tmp_path / "b.safetensors", "--format", "json")
    assert done.code == 0
    assert json.loads(done.out)["differences"] == []


def test_every_kind_of_difference(tmp_path: Path) -> None:
    a = {"same": torch.ones(3), "values": torch.zeros(40, 2), "shape": torch.ones(2), "dtype": torch.ones(2)}
    a |= {"scalar": torch.tensor(0.0), "gone": torch.ones(1)}
    b = {"same": torch.ones(3), "values": torch.ones(40, 2), "shape": torch.ones(3), "dtype": torch.ones(2).half()}
    b |= {"scalar": torch.tensor(-0.0), "new": torch.ones(1)}
    paths = _save(tmp_path, a, b)
    done = run("diff", *paths)
    assert (done.code, done.err) == (1, "")
    assert done.out.splitlines() == [
        "values: 40 of 40 channels: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, ...",
        "shape: shape (2,) and (3,)",
        "dtype: dtype float32 and float16",
        "scalar: 1 of 1 channels: 0",
        "gone: only in A",
        "new: only in B",
        "6 tensors differ",
    ]
    record = json.loads(run("diff", *paths, "--format", "json").out)
    assert record["schema_version"] == 1
    assert record["differences"][0]["channels"] == list(range(40))


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float8_e4m3fn", "int8", "int64", "uint8", "uint16", "uint32", "bool", "complex64"]
)
def test_one_bit_of_any_dtype(tmp_path: Path, suffix: str, dtype: str) -> None:
    a = torch.zeros(4, 6, dtype=torch.uint8).repeat(1, 8).view(getattr(torch, dtype))
    b = a.clone()
    b.view(torch.uint8)[2, 0] = 1
    done = run("diff", *_save(tmp_path, {"x": a}, {"x": b}, suffix))
    assert (done.code, done.out.splitlines()[0]) == (1, "x: 1 of 4 channels: 2")
    assert run("diff", *_save(tmp_path / "..", {"x": a}, {"x": a.clone()}, "pt")).code == 0


def test_nan_equals_itself_to_the_bit(tmp_path: Path) -> None:
    nan = torch.tensor([float("nan"), 1.0])
    assert run("diff", *_save(tmp_path, {"x": nan}, {"x": nan.clone()})).code == 0


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_quantised_tensors(tmp_path: Path) -> None:
    a, b = (torch.quantize_per_tensor(torch.arange(4.0) * factor, 0.5, 0, torch.qint8) for factor in (1, 2))
    assert run("diff", *_save(tmp_path, {"x": a}, {"x": a})).code == 0
    assert run("diff", *_save(tmp_path, {"x": a}, {"x": b})).code == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([PACKAGED], "Missing argument 'B'"),
        ([PACKAGED, "missing.pt"], "the file does not exist"),
        ([PACKAGED, "."], "got a folder"),
        ([PACKAGED, PACKAGED, PACKAGED], "unexpected extra argument"),
        ([PACKAGED, PACKAGED, "--key", "x"], "holds one state dict only"),
        ([PACKAGED, PACKAGED, "--format", "sarif"], "--format"),
    ],
)
def test_what_is_typed_wrong(words: list[object], message: str) -> None:
    assert message in refuse("diff", *words)


def test_hostile_names(tmp_path: Path) -> None:
    done = run("diff", *_save(tmp_path, {"\x1b[31m\n": torch.ones(1)}, {"x": torch.ones(1)}))
    assert done.code == 1
    assert "\\x1b[31m\\x0a: only in A" in done.out
