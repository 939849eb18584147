"""`unbackdoor defend` and `detect`: the packaged network, with images that come with the package."""

import json
from pathlib import Path

import pytest
import torch

from cli_runs import PACKAGED, refuse, run
from unbackdoor import checkpoint, demo
from unbackdoor.data import LabelledImages
from unbackdoor.models import parse_arch

ATTACK = PACKAGED.with_name("attack.json")


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> LabelledImages:
    """A hundred of the demo's images, in the place of a data set."""
    whole, _, _ = demo.load()
    few = LabelledImages(whole.images[::5], whole.labels[::5], whole.spec)
    monkeypatch.setattr("unbackdoor.data.load_dataset", lambda *_, **__: few)
    return few


def test_bnp_repairs_the_packaged_network(images: LabelledImages, tmp_path: Path) -> None:
    output, record, report = (tmp_path / name for name in ("out.safetensors", "record.json", "report.html"))
    done = run(
        *("defend", PACKAGED, "--method", "bnp", "--data", "cifar10", "--clean", "1.0", "--attack", ATTACK),
        *("-o", output, "--record", record, "--report", report, "--format", "html", "--seed", "3"),
    )
    assert done.code == 0
    before, after = done.out.splitlines()
    assert before.startswith("before")
    assert after.startswith("after")
    kept = json.loads(record.read_text())
    assert kept["before"]["asr"]["value"] > 0.9 > 0.5 > kept["after"]["asr"]["value"]
    assert kept["der"] > 0.6
    assert kept["method"] == {"name": "bnp", "u": 3.0, "batch_size": 500, "crop_padding": 4, "beta": "keep"}
    assert kept["data"]["images"] == len(images)
    assert (kept["data"]["seed"], kept["data"]["share"], kept["poisoned"]) == (3, 1.0, 0.0)
    assert str(tmp_path) not in record.read_text()
    assert "Images" in report.read_text()
    old, new = (checkpoint.load(path) for path in (PACKAGED, output))
    assert list(old.tensors) == list(new.tensors)
    assert {t.dtype for t in new.tensors.values()} == {t.dtype for t in old.tensors.values()}
    rates = run("evaluate", output, "--data", "cifar10", "--attack", ATTACK, "--format", "json")
    assert json.loads(rates.out)["result"] == kept["after"]


@pytest.mark.parametrize("method", ["lpp", "clp:u=2.5", "ft:epochs=1", "ep:bin_width=0.1"])
def test_every_kind_of_method_goes_through_the_same_command(
    images: LabelledImages, tmp_path: Path, method: str
) -> None:
    poisoned = ("--poisoned", "0.2") if method.startswith("ep") else ()
    words = (
        "defend",
        PACKAGED,
        "--method",
        method,
        "--data",
        "cifar10",
        "--clean",
        "60",
        "--attack",
        ATTACK,
        *poisoned,
    )
    done = run(*words, "--format", "json", "--quiet")
    assert done.code == 0
    read = json.loads(done.out)
    assert read["method"] == method.partition(":")[0]
    assert (read["data"] is None) == (method[:3] in ("lpp", "clp"))
    if read["data"] is not None:
        assert (read["data"]["images"], read["data"]["share"]) == (60, None)
    assert [line.split()[0] for line in done.err.splitlines()] == ["before", "after"]
    assert run(*words, "--format", "json", "--quiet") == done


def test_data_free_methods_need_no_data(tmp_path: Path) -> None:
    done = run("defend", PACKAGED, "--method", "lpp", "-o", tmp_path / "a.safetensors", "--quiet")
    assert done.code == 0
    assert run("repair", PACKAGED, "-o", tmp_path / "b.safetensors", "--quiet").code == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_presets(images: LabelledImages) -> None:
    words = ("defend", PACKAGED, "--data", "cifar10", "--clean", "1.0", "--evaluate", "--format", "json", "--quiet")
    read = json.loads(run(*words, "--method", "bnp", "--preset", "backdoorbench").out)
    assert (read["settings"]["batch_size"], read["settings"]["beta"]) == (256, "zero")
    assert "it has backdoorbench" in refuse(*words, "--method", "bnp", "--preset", "as_printed")
    assert "it has as_printed" in refuse(*words, "--method", "lpp", "--preset", "backdoorbench")
    assert "not both" in refuse(*words, "--method", "bnp:u=2", "--preset", "backdoorbench")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--method", "bpn", "--evaluate"), "did you mean 'bnp'?"),
        (("--method", "bnp:v=3", "--evaluate"), "unknown setting 'v'"),
        (("--method", "bnp:u=-3", "--evaluate"), "u: expected a number from 0"),
        (("--method", "bnp"), "expected -o OUT for the repaired file, --evaluate for its rates, or both"),
        (("--method", "bnp", "--evaluate"), "bnp needs clean images: give a data set with --data"),
        (("--method", "lpp", "--evaluate"), "measuring needs test images: give a data set with --data"),
        (("--method", "bnp", "--data", "cifar10", "--clean", "0", "--evaluate"), "clean subset: expected a share"),
        (("--method", "bnp", "--data", "cifar10", "--clean", "70.5", "--evaluate"), "or a whole number of images"),
        (("--method", "bnp", "--data", "cifar10", "--clean", "999", "--evaluate"), "expected 1 to 100 images"),
        (("--method", "bnp", "--data", "cifar10", "--poisoned", "0.1", "--evaluate"), "bnp uses clean images"),
        (("--method", "ep", "--data", "cifar10", "--poisoned", "0.1", "--evaluate"), "poisoned images need an attack"),
        (("--method", "ft", "--data", "cifar10", "--device", "moon", "--evaluate"), "device 'moon' cannot be used"),
        (
            ("--method", "ft", "--data", "cifar10", "--attack", "badnet:target=10"),
            "target: expected one of the classes",
        ),
        (("--method", "ft", "--data", "cifar10", "--attack", "none.json"), "expected the attack.json"),
    ],
)
def test_refusals(images: LabelledImages, words: tuple[str, ...], says: str) -> None:
    assert says in refuse("defend", PACKAGED, *words)


def test_files_are_never_lost(images: LabelledImages, tmp_path: Path) -> None:
    words = ("defend", PACKAGED, "--method", "bnp", "--data", "cifar10", "--evaluate")
    there = tmp_path / "there.safetensors"
    there.write_text("mine")
    assert "exists" in refuse(*words, "-o", there)
    assert "exists" in refuse(*words, "--record", there)
    assert there.read_text() == "mine"
    same = tmp_path / "same.json"
    assert "expected different files" in refuse(*words, "--record", same, "--report", same)
    assert "input" in refuse(*words, "-o", PACKAGED, "--force")
    assert list(tmp_path.iterdir()) == [there]


def test_a_network_of_other_classes_or_without_norms(images: LabelledImages, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "m.pt", parse_arch("resnet18:width=2,num_classes=7").build().state_dict())
    words = ("--data", "cifar10", "--clean", "50", "--evaluate")
    said = refuse("defend", tmp_path / "m.pt", "--arch", "resnet18:width=2,num_classes=7", "--method", "ft", *words)
    assert "m.pt: expected the 10 classes of CIFAR-10, got 7; choose another network" in said
    checkpoint.save(tmp_path / "v.pt", parse_arch("vgg19:width=2").build().state_dict())
    said = refuse("defend", tmp_path / "v.pt", "--arch", "vgg19:width=2", "--method", "anp", *words)
    assert "anp works on BatchNorm channels, and this network has none" in said
    assert "give the network with --arch" in refuse("defend", tmp_path / "v.pt", "--method", "ft", *words)


def test_detecting_in_the_packaged_network(
    images: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1 is a finding: half of the images that are said to be of the target class carry the trigger."""
    monkeypatch.setattr("unbackdoor.detectors.data_based.activation_clustering.FEW", 5)
    words = ("detect", PACKAGED, "--data", "cifar10", "--images", "1.0", "--quiet")
    done = run(*words, "--method", "ac", "--attack", ATTACK, "--poisoned", "0.1")
    assert done.code == (1 if "Suspicious: class" in done.out else 0)
    assert "proof" in done.out
    done = run(
        *words,
        "--method",
        "nc:steps=3,batch_size=4,success=0.0",
        "--format",
        "json",
        "--output",
        tmp_path / "found.json",
    )
    read = json.loads((tmp_path / "found.json").read_text())
    assert done.code == (1 if any(c["suspicious"] for c in read["classes"]) else 0)
    assert len(read["classes"]) == 10
    assert done.out == ""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--method", "nx"), "unknown detector 'nx'"),
        (("--method", "nc@backdoorbench"), "detectors have no presets"),
        (("--method", "nc:steps=0"), "steps: expected a whole number of at least 1"),
        (("--method", "nc", "--poisoned", "0.1", "--attack", "badnet"), "nc uses clean images"),
        (("--method", "ac", "--poisoned", "0.1"), "poisoned images need an attack"),
        (("--method", "ac", "--images", "1e9"), "expected 1 to 100 images"),
        (("--method", "ac", "--images", "inf"), "or a whole number of images"),
        (("--method", "ac", "--seed", "9" * 30), "seed: expected a number from 0 to"),
        (("--method", "ac"), "expected at least 20 images of one class"),
    ],
)
def test_detector_refusals(images: LabelledImages, words: tuple[str, ...], says: str) -> None:
    assert says in refuse("detect", PACKAGED, "--data", "cifar10", *words)


def test_repaired_weights_are_what_the_method_gave(images: LabelledImages, tmp_path: Path) -> None:
    words = ("defend", PACKAGED, "--method", "ft:epochs=1", "--data", "cifar10", "--clean", "50", "--quiet")
    assert run(*words, "-o", tmp_path / "a.safetensors").code == 0
    assert run(*words, "-o", tmp_path / "b.pt").code == 0
    a, b = (checkpoint.load(tmp_path / name).tensors for name in ("a.safetensors", "b.pt"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    old = checkpoint.load(PACKAGED).tensors
    assert not torch.equal(a["conv1.weight"], old["conv1.weight"])
