"""`unbackdoor scan --deep` and `witness`: exit codes, what it needs, and that files and tensors are left alone."""

import functools
import json
import shutil
from pathlib import Path

import pytest
import torch

import unbackdoor
from cli_runs import PACKAGED, refuse, run
from planted_networks import EXAMPLE, Stripes, Toy
from unbackdoor.api import witnessing
from unbackdoor.defender.clean_networks import CleanNetwork, CleanNetworks
from unbackdoor.defender.look import look
from unbackdoor.defender.witnessed import picture
from unbackdoor.errors import MethodError, SettingError


def known(largest: float, count: int = 5) -> CleanNetworks:
    one = CleanNetwork(
        data="d",
        arch="a",
        classes=10,
        running_statistics=True,
        largest={"head": largest, "stimulation": largest, "reconstruction": largest},
    )
    return CleanNetworks(networks=[one] * count)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few images and steps, and clean networks of which none stands out."""
    quick(monkeypatch, known(1e6))


def quick(monkeypatch: pytest.MonkeyPatch, clean: CleanNetworks) -> None:
    monkeypatch.setattr(
        witnessing, "look", functools.partial(look, count=10, stimulated=1, steps=2, batch=4, known=clean)
    )


@pytest.fixture
def toy(tmp_path: Path) -> tuple[Path, str]:
    """A file, and the network of it."""
    source = tmp_path / "toy.py"
    source.write_text("from planted_networks import Toy\n\ndef build():\n    return Toy(channel=200.0)\n")
    torch.save(Toy(channel=200.0).state_dict(), tmp_path / "toy.pt")
    return tmp_path / "toy.pt", f"{source}:build"


def words(toy: tuple[Path, str], *more: object) -> list[object]:
    pixels = ["--input", "3x8x8", "--mean", "0", "--std", "1"]
    return ["scan", toy[0], "--arch", toy[1], *pixels, "--deep", "--quiet", *more]


def test_a_suspected_class_is_a_finding(toy: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    never = run(*words(toy, "--fail-on", "suspect"))
    assert (never.code, never.err) == (0, "")
    assert "No class is suspected (p = " in never.out
    quick(monkeypatch, known(0.1))
    done = run(*words(toy, "--fail-on", "suspect", "--format", "json"))
    assert done.code == 1, done.err
    said = json.loads(done.out)["witness"]
    assert said["suspects"]
    assert said["p"] == pytest.approx(1 / 6)
    assert run(*words(toy, "--fail-on", "never")).code == 0
    assert run(*words(toy, "--upper", "inf", "--lower", "-inf")).code == 1


def test_it_is_asked_only_if_deep(toy: tuple[Path, str]) -> None:
    assert "--deep" in refuse("scan", toy[0], "--fail-on", "suspect")
    assert "--deep" in refuse("scan", toy[0], "--mean", "0", "--std", "1")
    assert "witness" not in json.loads(run("scan", toy[0], "--format", "json").out)


def test_what_cannot_be_run_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy: tuple[Path, str]) -> None:
    from safetensors.torch import load_file, save_file

    save_file(load_file(PACKAGED), tmp_path / "bare.safetensors")
    done = run("scan", tmp_path / "bare.safetensors", "--deep", "--quiet")
    assert done.code == 3
    assert "NOT LOOKED DEEPER" in done.out
    assert "give the network with --arch" in " ".join(done.out.split())
    alone = Path(shutil.copy(PACKAGED, tmp_path / "alone.safetensors"))
    sizes = run("scan", alone, "--deep", "--quiet")
    assert sizes.code == 3
    assert "--input 3x32x32" in " ".join(sizes.out.split())
    quick(monkeypatch, known(1.0, count=2))
    few = run(*words(toy))
    assert few.code == 3
    assert "expected 4 or more honest networks to compare with, have 2" in " ".join(few.out.split())


def test_witness_takes_a_file_or_a_network(toy: tuple[Path, str]) -> None:
    pixels = {"example": EXAMPLE, "mean": 0.0, "std": 1.0}
    of_file = unbackdoor.witness(toy[0], arch=toy[1], **pixels)
    of_network = unbackdoor.witness(Toy(channel=200.0).eval(), **pixels)
    assert of_file.classes == of_network.classes
    assert (of_file.source, of_network.source) == (str(toy[0]), None)
    assert of_file.to_json() == unbackdoor.witness(toy[0], arch=toy[1], **pixels).to_json()
    assert of_file.to_json() != unbackdoor.witness(toy[0], arch=toy[1], seed=1, **pixels).to_json()
    report = unbackdoor.scan(toy[0], arch=toy[1], deep=True, **pixels)
    assert report.witness == of_file
    assert "<html" in of_file.to_html()


def test_pictures_are_of_any_channels_and_size() -> None:
    for shape in ((1, 8, 8), (3, 300, 200), (5, 8, 8)):
        assert picture(torch.rand(shape)).startswith("data:image/png;base64,")


def test_wrong_arguments() -> None:
    with pytest.raises(SettingError, match="expected a model file or a network"):
        unbackdoor.witness(3)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="seed: expected a number from 0"):
        unbackdoor.witness(Stripes(), seed=-1)
    with pytest.raises(MethodError, match="size of the images"):
        unbackdoor.witness(Stripes())
