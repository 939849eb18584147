"""`--input` and `--output KEY`, as a user types them; and the package run as a module."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from cli_runs import refuse, run
from unbackdoor import checkpoint
from unbackdoor.cli.defend import _portable

CODE = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.n = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
        self.e, self.f = nn.Embedding(10, 8), nn.Linear(24, 4)

    def forward(self, image, tokens):
        if image.shape[0] != tokens.shape[0]:
            raise ValueError
        return self.f(torch.cat([self.n(self.c(image)).amax((2, 3)), self.e(tokens).mean(1)], 1))

class Head(nn.Module):
    def __init__(self, kind="tensor", num_classes=2):
        super().__init__()
        self.kind = kind
        self.c, self.n, self.f = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, num_classes)

    def forward(self, x):
        features = self.n(self.c(x)).relu().mean((2, 3))
        logits = self.f(features)
        return {"tensor": logits, "dict": {"out": logits, "feat": features}, "tuple": (features, logits)}[self.kind]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks, their files, and a few images of two classes."""
    place = tmp_path_factory.mktemp("nets")
    (place / "nets.py").write_text(CODE)
    space: dict[str, type[torch.nn.Module]] = {}
    exec(CODE, space)
    torch.manual_seed(0)
    checkpoint.save(place / "two.pt", space["Two"]().state_dict())
    checkpoint.save(place / "head.pt", space["Head"]().state_dict())
    for index in range(24):
        file = place / "images" / ("train" if index % 3 else "test") / "ab"[index % 2] / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((16, 16), 10 + index).convert("RGB").save(file)
    return place


def head(folder: Path, kind: str) -> tuple[object, ...]:
    return folder / "head.pt", "--arch", f"{folder / 'nets.py'}:Head:kind={kind}", "--data", folder / "images"


class TestInput:
    """Where a graph is read."""

    def test_scan_inspect_and_repair(self, folder: Path, tmp_path: Path) -> None:
        words = (folder / "two.pt", "--arch", f"{folder / 'nets.py'}:Two")
        given = ("--input", "3x16x16,5:int")
        assert run("scan", *words).code == 3
        done = run("scan", *words, *given, "--format", "json")
        assert [layer["path"] for layer in json.loads(done.out)["layers"]] == ["c"]
        assert done.code in (0, 1)
        assert run("inspect", *words).code == 3
        done = run("inspect", *words, *given, "--format", "json")
        assert (done.code, json.loads(done.out)["layers"][0]["norm"]) == (0, "n")
        assert run("repair", *words, "-o", tmp_path / "a.pt").code == 3
        assert run("repair", *words, *given, "-o", tmp_path / "a.pt").code == 0
        assert run("defend", *words, "--method", "lpp", "-o", tmp_path / "b.pt").code == 3
        assert run("defend", *words, *given, "--method", "lpp", "-o", tmp_path / "b.pt").code == 0
        a, b = (checkpoint.load(tmp_path / name).tensors for name in ("a.pt", "b.pt"))
        assert all(torch.equal(a[name], b[name]) for name in a)

    @pytest.mark.parametrize("command", ["scan", "inspect", "repair", "defend", "detect"])
    def test_a_wrong_one_is_one_line(self, folder: Path, command: str) -> None:
        more = {"defend": ("--method", "lpp"), "detect": ("--method", "ac", "--data", "cifar10")}.get(command, ())
        said = refuse(command, folder / "two.pt", *more, "--input", "3x32x32:double")
        assert "--input '3x32x32:double': expected sizes without the batch, such as 3x32x32" in said

    def test_without_a_network_it_says_so(self, folder: Path) -> None:
        assert "give the network with --arch" in refuse("scan", folder / "two.pt", "--input", "3x16x16")


class TestOutput:
    """Networks that return more than logits."""

    def test_evaluate(self, folder: Path) -> None:
        wanted = run("evaluate", *head(folder, "tensor"), "--quiet")
        assert wanted.code == 0
        assert run("evaluate", *head(folder, "dict"), "--output", "out", "--quiet") == wanted
        assert run("evaluate", *head(folder, "tuple"), "--output", "1", "--quiet") == wanted
        said = refuse("evaluate", *head(folder, "dict"), "--quiet")
        assert "got a dict of out (2, 2), feat (2, 8); name the part that is the logits with --output" in said
        assert "leave --output" in refuse("evaluate", *head(folder, "tensor"), "--output", "out", "--quiet")

    def test_defend(self, folder: Path, tmp_path: Path) -> None:
        words = ("--method", "ft:epochs=1", "--clean", "1.0", "--quiet")
        for kind, more in (("tensor", ()), ("dict", ("--output", "out")), ("tuple", ("--output=1",))):
            target = tmp_path / f"{kind}.pt"
            assert run("defend", *head(folder, kind), *words, *more, "--evaluate", "-o", target).code == 0
        found = [checkpoint.load(tmp_path / f"{kind}.pt").tensors for kind in ("tensor", "dict", "tuple")]
        assert all(torch.equal(found[0][name], other[name]) for other in found[1:] for name in found[0])
        said = refuse("defend", *head(folder, "dict"), *words, "-o", tmp_path / "no.pt")
        assert "name the part that is the logits" in said
        assert not (tmp_path / "no.pt").exists()

    def test_a_file_behind_it_is_still_a_file(self, folder: Path, tmp_path: Path) -> None:
        words = (*head(folder, "tensor"), "--method", "ft:epochs=1", "--clean", "1.0", "--quiet")
        assert run("defend", *words, "--output", tmp_path / "a.safetensors").code == 0
        assert (tmp_path / "a.safetensors").exists()
        said = refuse("defend", *words, "--output", "b.pt", "-o", tmp_path / "c.pt")
        assert "expected one file; --output names a part of the network's output" in said

    def test_detect(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("sklearn")
        monkeypatch.setattr("unbackdoor.detectors.data_based.activation_clustering.FEW", 5)
        words = ("--method", "ac", "--images", "1.0", "--quiet")
        wanted = run("detect", *head(folder, "tensor"), *words)
        assert wanted.code in (0, 1)
        assert run("detect", *head(folder, "dict"), *words, "--output", "out") == wanted
        assert "name the part" in refuse("detect", *head(folder, "dict"), *words)
        for option in ("-o", "--output"):
            target = tmp_path / f"found{option}.txt"
            assert run("detect", *head(folder, "tensor"), *words, option, target).out == ""
            assert target.read_text() == wanted.out

    def test_a_record_keeps_a_key_and_drops_a_file(self) -> None:
        words = ["defend", "m.pt", "--output", "out", "-o", "/x/a.pt", "--output=1", "--evaluate"]
        assert _portable(words) == ["defend", "m.pt", "--output", "out", "--output=1", "--evaluate"]
        words = ["defend", "--output", "/x/a.pt", "--output=b.pt", "--clean", "5"]
        assert _portable(words) == ["defend", "--clean", "5"]


def test_the_package_run_as_a_module_is_the_command() -> None:
    def start(*words: str) -> subprocess.CompletedProcess[str]:
        code = [sys.executable, "-m", "unbackdoor", *words]
        return subprocess.run(code, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"})

    done = start("--help")
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: unbackdoor [OPTIONS] COMMAND [ARGS]...\n")
    done = start("nonsense")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("(see unbackdoor --help)\n")
