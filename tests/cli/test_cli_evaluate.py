"""`unbackdoor evaluate`: rates of a model file, on images that come with the package."""

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from cli_runs import PACKAGED, refuse, run
from unbackdoor import checkpoint, demo
from unbackdoor.api import evaluate
from unbackdoor.attacks import parse_attack, save_attack
from unbackdoor.data import CacheWarning, LabelledImages
from unbackdoor.errors import ArchitectureError, SettingError
from unbackdoor.models import parse_arch

Build = Callable[..., nn.Module]
ATTACK = str(PACKAGED.with_name("attack.json"))


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> LabelledImages:
    """Forty of the demo's images, in the place of a data set."""
    whole, _, _ = demo.load()
    few = LabelledImages(whole.images[::12], whole.labels[::12], whole.spec)
    monkeypatch.setattr("unbackdoor.data.load_dataset", lambda *_, **__: few)
    return few


def test_acc_asr_and_ra(images: LabelledImages, tmp_path: Path) -> None:
    done = run("evaluate", PACKAGED, "--data", "cifar10")
    assert (done.code, done.err) == (0, "")
    (line,) = done.out.splitlines()
    assert line.startswith("ACC ")
    assert line.endswith(f"of {len(images)})")
    done = run("evaluate", PACKAGED, "--data", "cifar10", "--attack", ATTACK)
    assert [text.split()[0] for text in done.out.splitlines()] == ["ACC", "ASR", "RA", "RECALL"]
    save_attack(parse_attack("badnet:size=3"), tmp_path)
    done = run("evaluate", PACKAGED, "--data", "cifar10", "--attack", tmp_path / "attack.json")
    assert run("evaluate", PACKAGED, "--data", "cifar10", "--attack", "badnet:size=3") == done


def test_as_json(images: LabelledImages) -> None:
    done = run("evaluate", PACKAGED, "--data", "cifar10", "--attack", ATTACK, "--format", "json")
    record = json.loads(done.out)
    assert (done.code, record["schema_version"], record["data"]) == (0, 1, "cifar10")
    assert record["result"]["acc"]["total"] == len(images)
    assert record["result"]["asr"]["value"] > 0.8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types(images: LabelledImages, tmp_path: Path, dtype: torch.dtype) -> None:
    state = parse_arch("resnet18:width=2").build().to(dtype).state_dict()
    checkpoint.save(tmp_path / "m.pt", state)
    assert run("evaluate", tmp_path / "m.pt", "--arch", "resnet18:width=2", "--data", "cifar10").code == 0


def test_one_of_several_state_dicts(images: LabelledImages, tmp_path: Path) -> None:
    state = parse_arch("resnet18:width=2").build().state_dict()
    torch.save({"model": {**state, "fc.weight": state["fc.weight"] * float("nan")}, "ema": state}, tmp_path / "m.pt")
    words = ["evaluate", tmp_path / "m.pt", "--arch", "resnet18:width=2", "--data", "cifar10"]
    assert "holds this network several times: 'model', 'ema'; choose one with --key" in refuse(*words)
    assert run(*words, "--key", "model").out.split()[1] == "0.00%"
    assert run(*words, "--key", "ema").code == 0


def test_weights_that_are_not_numbers_are_never_right(images: LabelledImages, tmp_path: Path) -> None:
    state = parse_arch("resnet18:width=2").build().state_dict()
    state["fc.weight"].fill_(float("nan"))
    checkpoint.save(tmp_path / "m.pt", state)
    done = run("evaluate", tmp_path / "m.pt", "--arch", "resnet18:width=2", "--data", "cifar10", "--format", "json")
    assert json.loads(done.out)["result"]["acc"]["hits"] == 0


def test_whole_numbers_are_no_weights(images: LabelledImages, tmp_path: Path) -> None:
    state = parse_arch("resnet18:width=2").build().state_dict()
    state["fc.weight"] = state["fc.weight"].to(torch.int8)
    checkpoint.save(tmp_path / "m.pt", state)
    line = refuse("evaluate", tmp_path / "m.pt", "--arch", "resnet18:width=2", "--data", "cifar10")
    assert "'fc.weight': expected floating-point numbers, got int8" in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "cifar11"], "unknown data set 'cifar11'"),
        (["--data", "cifar10", "--arch", "resnet18"], "is not resnet18: tensors of another shape"),
        (["--data", "cifar10", "--attack", "badnets"], "unknown attack 'badnets'"),
        (["--data", "cifar10", "--attack", "missing.json"], "missing.json"),
        (["--data", "cifar10", "--attack", "badnet", "--target", "10"], "got 10"),
        (["--data", "cifar10", "--attack", "badnet:target=2", "--target", "3"], "its target is 2, not 3"),
        (["--data", "cifar10", "--attack", ATTACK, "--target", "3"], "attack.json: its target is 0, not 3; leave out"),
        (["--data", "cifar10", "--device", "toaster"], "device 'toaster' cannot be used here"),
        ([], "Missing option '--data'"),
    ],
)
def test_what_is_typed_wrong(words: list[str], message: str) -> None:
    assert message in refuse("evaluate", PACKAGED, *words)


def test_a_network_of_other_classes(images: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its largest logit would be taken for a class."""
    arch = "resnet18:width=2,num_classes=5"
    checkpoint.save(tmp_path / "m.pt", parse_arch(arch).build().state_dict())
    line = refuse("evaluate", tmp_path / "m.pt", "--arch", arch, "--data", "cifar10")
    assert "the network: expected the 10 classes of CIFAR-10, got 5; choose another network or data set" in line


def test_the_same_from_python(images: LabelledImages) -> None:
    network = parse_arch("resnet18:width=2,num_classes=5").build()
    with pytest.raises(ArchitectureError, match="got 5; choose another network"):
        evaluate(network)
    with pytest.raises(ArchitectureError, match="expected logits of shape .2, classes. for two images, got a tensor"):
        evaluate(nn.Conv2d(3, 10, 1))
    with pytest.raises(SettingError, match="target: expected one of the classes 0 to 9, got 77"):
        evaluate(PACKAGED, attack=parse_attack("badnet", target=77))


@pytest.mark.parametrize("text", ["blended", "lf", "wanet"])
def test_a_trigger_of_another_size(images: LabelledImages, tmp_path: Path, text: str) -> None:
    small = LabelledImages(images.images[..., :16, :16].contiguous(), images.labels, replace(images.spec, size=16))
    save_attack(parse_attack(text).prepare(small, seed=0), tmp_path)
    line = refuse("evaluate", PACKAGED, "--data", "cifar10", "--attack", tmp_path / "attack.json")
    assert f"{text}: its " in line
    assert "(3, 16, 16)" in line or "(16, 16)" in line


def test_a_warning_is_one_line_and_none_if_asked_for(
    images: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> LabelledImages:
        warnings.warn("the cache\nis full", CacheWarning, stacklevel=2)
        return images

    monkeypatch.setattr("unbackdoor.data.load_dataset", load)
    done = run("evaluate", PACKAGED, "--data", "cifar10")
    assert (done.code, done.err) == (0, "unbackdoor: warning: the cache is full\n")
    assert run("evaluate", PACKAGED, "--data", "cifar10", "--quiet").err == ""


def test_data_that_are_not_there(tmp_path: Path) -> None:
    line = refuse("evaluate", PACKAGED, "--data", "cifar10", "--data-dir", tmp_path)
    assert "CIFAR-10 was not found" in line


def test_a_file_that_does_not_say_what_it_is(tmp_path: Path, tiny_net: Build) -> None:
    checkpoint.save(tmp_path / "m.safetensors", tiny_net().state_dict())
    line = refuse("evaluate", tmp_path / "m.safetensors", "--data", "cifar10")
    assert "the file does not name its network; give the network with --arch" in line
    checkpoint.save(tmp_path / "n.safetensors", tiny_net().state_dict(), metadata={"unbackdoor.arch": "resnet18"})
    line = refuse("evaluate", tmp_path / "n.safetensors", "--data", "cifar10")
    assert (
        "its unbackdoor.arch names a network that the file does not hold: not used; give the network with --arch"
        in line
    )


def test_a_target_without_an_attack_is_refused() -> None:
    assert "give --attack too" in refuse("evaluate", PACKAGED, "--data", "cifar10", "--target", "3")
