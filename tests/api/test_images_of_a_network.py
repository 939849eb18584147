"""How detect learns what images a network takes: --mean and --std, the record beside the file, BackdoorBench's file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import unbackdoor as ub
from cli_runs import PACKAGED, refuse, run
from unbackdoor import demo
from unbackdoor.data import DATASETS, LabelledImages
from unbackdoor.defender.case import Case, Needs
from unbackdoor.defender.images import DefenderData
from unbackdoor.defender.input_spec import input_spec
from unbackdoor.detectors import DETECTORS
from unbackdoor.detectors.base import Found
from unbackdoor.detectors.data_based.base import DataBasedDetector
from unbackdoor.detectors.data_free.base import DataFreeDetector
from unbackdoor.errors import SettingError
from unbackdoor.findings import ClassFinding
from unbackdoor.inputs import InputSpec, Normalisation, normalisation
from unbackdoor.models import parse_arch

CIFAR10 = DATASETS["cifar10"]
RECORD = {"data": {"name": "gtsrb"}, "arch": "resnet18:width=16,num_classes=10"}


@dataclass(frozen=True, kw_only=True)
class Asks(DataFreeDetector):
    """Says in its notes what images the network takes."""

    name: ClassVar[str] = "asks"
    title: ClassVar[str] = "What images the network takes"
    paper: ClassVar[None] = None

    def inspect(self, case: Case, model: nn.Module) -> Found:
        """One note."""
        return (ClassFinding(label=0, suspicious=False, values={}),), (input_spec(case, model).note,)


@dataclass(frozen=True, kw_only=True)
class AsksImages(DataBasedDetector):
    """The same with images: says what black is to the network."""

    name: ClassVar[str] = "asks-images"
    title: ClassVar[str] = "What black is"
    paper: ClassVar[None] = None
    needs: ClassVar[Needs] = "clean images"

    def inspect(self, case: Case, model: nn.Module, data: DefenderData) -> Found:
        """One note."""
        return (ClassFinding(label=0, suspicious=False, values={}),), (f"{data.floor.flatten().tolist()}",)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    DETECTORS.add(Asks.name, Asks)
    yield
    del DETECTORS._entries[Asks.name]


def folder(path: Path, record: Any) -> Path:
    """A model file with a record beside it."""
    shutil.copy(PACKAGED, path / "model.safetensors")
    text = record if isinstance(record, str) else json.dumps(record)
    (path / "record.json").write_text(text)
    return path / "model.safetensors"


def note(source: Path, **more: Any) -> str:
    (found,) = ub.detect(source, detector=Asks(), **more).notes
    return found


@pytest.mark.parametrize(
    ("mean", "std", "says"),
    [
        (0.5, None, r"mean: expected std beside it \(--std\)"),
        (None, 0.5, r"std: expected mean beside it \(--mean\)"),
        (0.5, 0, r"std: expected a number above 0 and up to 1, or one a channel, got 0; .*divide by 255"),
        (0.5, -0.1, r"std: .* got -0.1"),
        (0.5, float("nan"), r"std: .* got nan"),
        (float("nan"), 0.5, r"mean: expected a number from 0 to 1, .* got nan"),
        (0.5, float("inf"), r"std: .* got inf"),
        ((0.5, 123.675, 0.5), 0.5, r"mean: .* got 123.675; .*divide by 255"),
        ((), 0.5, r"mean: .* got \(\)"),
        ("0.5", 0.5, r"mean: .* got '0.5'"),
        (True, 0.5, r"mean: .* got True"),
        ([0.5, None], 0.5, r"mean: .* got None"),
        ([[0.5]], 0.5, r"mean: .* got \[0.5\]"),
    ],
)
def test_what_is_no_normalisation_is_refused(mean: Any, std: Any, says: str) -> None:
    with pytest.raises(SettingError, match=says):
        normalisation(mean, std)
    with pytest.raises(SettingError, match=says):
        ub.detect(PACKAGED, detector=Asks(), mean=mean, std=std)


def test_one_number_or_one_a_channel() -> None:
    three = (0.485, 0.456, 0.406)
    expected = Normalisation(mean=three, std=(0.25,))
    for given in (three, list(three), np.array(three), torch.tensor(three, dtype=torch.float64)):
        assert normalisation(given, 0.25) == expected
    assert normalisation() is None
    assert expected.spec((3, 8, 9)) == InputSpec(shape=(3, 8, 9), mean=three, std=(0.25,) * 3)
    with pytest.raises(SettingError, match=r"mean: expected 1 value, got 3"):
        expected.spec((1, 8, 9))


def test_on_the_command_line() -> None:
    words = ("detect", PACKAGED, "--method", "asks", "--input", "3x32x32", "--quiet")
    said = run(*words, "--mean", "0.485,0.456,0.406", "--std", "0.25").out
    assert "images 3x32x32 (given), mean 0.485,0.456,0.406 and std 0.25,0.25,0.25 (given)" in said
    for more, says in (
        (("--mean", "half", "--std", "1"), "--mean: expected a number, or one a channel such as 0.485,0.456,0.406"),
        (("--mean", "0.5,", "--std", "1"), "--mean: expected a number"),
        (("--mean", "0.5"), "expected std beside it (--std)"),
        (("--mean", "0.5", "--std", "0"), "std: expected a number above 0"),
        (("--mean", "0.5,0.5", "--std", "1"), "mean: expected 1 value or 3 (the images are 3x32x32), got 2"),
    ):
        assert says in refuse(*words, *more)


def test_the_record_of_a_training_names_the_data_set(tmp_path: Path) -> None:
    source = folder(tmp_path, RECORD)
    assert note(source) == "images 3x32x32 (of the data set gtsrb), mean 0,0,0 and std 1,1,1 (of the data set gtsrb)"
    assert "std 0.25,0.25,0.25 (given)" in note(source, mean=0.5, std=0.25)
    assert "(of the data set cifar10)" in note(PACKAGED)


@pytest.mark.parametrize(
    "record",
    [
        {**RECORD, "arch": "vgg16_bn:num_classes=10"},
        {**RECORD, "arch": "resnet18:width=8,num_classes=10"},
        {**RECORD, "arch": "no such network"},
        {**RECORD, "arch": None},
        {**RECORD, "arch": 3},
        {**RECORD, "arch": [1, 2]},
        {**RECORD, "data": {"name": "birds"}},
        {**RECORD, "data": {"name": ["gtsrb"]}},
        {**RECORD, "data": "gtsrb"},
        {},
        [],
        "not json",
        '{"data": ' * 100_000,
        " " * 2**21 + "{}",
    ],
    ids=range(14),
)
def test_another_record_says_nothing(tmp_path: Path, record: Any) -> None:
    source = folder(tmp_path, record)
    assert "estimate from bn1" in note(source, example=torch.zeros(2, 3, 32, 32))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_record_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    source = folder(tmp_path, {})
    (tmp_path / "record.json").unlink()
    os.mkfifo(tmp_path / "record.json")
    assert "estimate from bn1" in note(source, example=torch.zeros(2, 3, 32, 32))


@pytest.mark.parametrize(
    ("data", "size"), [("cifar10", 32), ("tiny", 64), ("celeba", None), (["cifar10"], None)], ids=str
)
def test_backdoorbench_names_the_data_set(tmp_path: Path, data: Any, size: int | None) -> None:
    state = parse_arch("preactresnet18").build().state_dict()
    path = tmp_path / "attack_result.pt"
    torch.save({"model_name": "preactresnet18", "num_classes": 10, "model": state, "clean_data": data}, path)
    if size is None:
        assert "of the data set" not in note(path, example=torch.zeros(2, 3, 32, 32))
    else:
        name = "tiny_imagenet" if data == "tiny" else data
        assert note(path).startswith(f"images 3x{size}x{size} (of the data set {name})")


def test_images_of_a_data_set_are_normalised_as_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _, _ = demo.load()
    few = LabelledImages(whole.images[::100], whole.labels[::100], whole.spec)
    monkeypatch.setattr("unbackdoor.data.load_dataset", lambda *_, **__: few)
    common = {"detector": AsksImages(), "data": "cifar10", "images": 2}
    black = [-m / s for m, s in zip(CIFAR10.mean, CIFAR10.std, strict=True)]
    assert json.loads(ub.detect(PACKAGED, **common).notes[0]) == pytest.approx(black)
    said = ub.detect(PACKAGED, **common, mean=(0.5, 0.25, 0), std=0.5)
    assert json.loads(said.notes[0]) == pytest.approx([-1, -0.5, 0])
    with pytest.raises(SettingError, match="mean: expected 1 value or 3"):
        ub.detect(PACKAGED, **common, mean=(0.5, 0.25), std=0.5)
