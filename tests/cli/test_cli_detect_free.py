"""`unbackdoor detect` by methods that need no images: what says the size and the normalisation of those they make."""

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


def found(*words: object) -> list[dict]:
    done = run("detect", *words, "--method", FEW, "--format", "json", "--quiet")
    assert done.code in (0, 1), done.err
    return json.loads(done.out)["classes"]


def test_the_training_record_says_it(alone: Path) -> None:
    said = found(PACKAGED)
    assert found(alone, "--data", "cifar10") == said
    pixels = found(alone, "--input", "3x32x32")  # not normalised
    assert [one["label"] for one in pixels] == list(range(10))
    assert pixels != said
    assert "--input 3x32x32" in refuse("detect", alone, "--method", FEW, "--quiet")
    assert "--input 3x32x32" in refuse("detect", alone, "--method", "margin", "--quiet")
    assert "unknown data set 'cifar'" in refuse("detect", alone, "--method", FEW, "--data", "cifar", "--quiet")
    shutil.copy(PACKAGED.with_name("record.json"), alone.parent)
    assert found(alone) == said


@pytest.mark.parametrize(
    "text",
    [
        '{"arch": "resnet18:width=8,num_classes=10", "data": {"name": "cifar10"}}',  # another network's
        '{"arch": "resnet18:width=16,num_classes=10", "data": {"name": "mine"}}',
        '{"arch": "resnet18:width=16,num_classes=10", "data": {"name": ["cifar10"]}}',
        '{"arch": "resnet18:width=16,num_classes=10", "data": "cifar10"}',
        '["arch"]',
        "[" * 100_000,
        "{",
        '"' + " " * 2**20 + '"',
    ],
    ids=["network", "name", "type", "form", "list", "deep", "broken", "long"],
)
def test_a_record_that_says_nothing_is_not_used(alone: Path, text: str) -> None:
    alone.with_name("record.json").write_text(text)
    assert "nothing says" in refuse("detect", alone, "--method", FEW, "--quiet")


def test_a_network_is_needed(alone: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file(load_file(alone), tmp_path / "bare.safetensors")
    assert "give the network with --arch" in refuse("detect", tmp_path / "bare.safetensors", "--method", FEW, "--quiet")


def test_they_are_listed_with_their_needs() -> None:
    listed = " ".join(run("detect", "--help").out.split())
    assert "head (Head quadratic programme, wants nothing)" in listed
    assert "margin (MM-BD, maximum margin, wants nothing)" in listed
