"""`unbackdoor detect` by methods that need no images."""

import json
import shutil
from pathlib import Path

import pytest

from cli_runs import PACKAGED, refuse, run

FEW = "head:surrogates=10"


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """The packaged network, without the record beside it."""
    return Path(shutil.copy(PACKAGED, tmp_path / "model.safetensors"))


def found(*words: object) -> dict:
    done = run("detect", *words, "--method", FEW, "--format", "json", "--quiet")
    assert done.code in (0, 1), done.err
    return json.loads(done.out)


def test_what_says_the_images(alone: Path) -> None:
    said = found(PACKAGED)
    assert found(alone, "--data", "cifar10")["classes"] == said["classes"]
    assert any("cifar10" in note for note in said["notes"])
    pixels = found(alone, "--input", "3x32x32", "--mean", "0", "--std", "1")
    assert [one["label"] for one in pixels["classes"]] == list(range(10))
    assert pixels["classes"] != said["classes"]
    for method in (FEW, "margin", "stimulation", "channels", "leaves", "reconstruction"):
        assert "--input 3x32x32" in refuse("detect", alone, "--method", method, "--quiet")
    assert "unknown data set 'cifar'" in refuse("detect", alone, "--method", FEW, "--data", "cifar", "--quiet")


def test_a_network_is_needed(alone: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file(load_file(alone), tmp_path / "bare.safetensors")
    assert "give the network with --arch" in refuse("detect", tmp_path / "bare.safetensors", "--method", FEW, "--quiet")


def test_they_are_listed_with_their_needs() -> None:
    listed = " ".join(run("detect", "--help").out.split())
    for method in (
        "head (Head quadratic programme",
        "margin (MM-BD, maximum margin",
        "stimulation (Channel stimulation",
        "channels (Channel triggers",
        "leaves (Dead leaves",
        "reconstruction (Trigger reconstruction",
    ):
        assert f"{method}, wants nothing)" in listed
