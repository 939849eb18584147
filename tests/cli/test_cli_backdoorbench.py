"""BackdoorBench's files, end to end: `attack_result.pt` in, the format of `defense_result.pt` and its table out."""

import csv
import json
import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cli_runs import PACKAGED, Run, refuse, run
from unbackdoor import checkpoint, demo
from unbackdoor.api import load_model, open_model, scan
from unbackdoor.data import LabelledImages
from unbackdoor.errors import CheckpointError
from unbackdoor.models import parse_arch

ATTACK = PACKAGED.with_name("attack.json")
PREACT = "preactresnet18"

# Opens a file in a process of its own, where any sign of what the file names ends the process at once.
GUARDED = """
import os, sys
import torch
from unbackdoor import checkpoint
from unbackdoor.errors import CheckpointError

def watch(event, arguments):
    foreign = any(word in str(arguments[:1]) for word in ("canary", "stranger"))
    if event.startswith(("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen")) or (
        event in ("open", "import", "compile", "exec") and foreign
    ):
        os.write(2, f"FORBIDDEN {event} {arguments}".encode())
        os._exit(99)

path, output = sys.argv[1:]
sys.addaudithook(watch)
try:
    found = checkpoint.load(path)
except CheckpointError as error:
    print(error)
else:
    checkpoint.save(output, found.tensors, like=found)
    print("read")
assert "stranger" not in sys.modules
"""


class Calls:
    """Pickles as a call of whatever it is given."""

    def __init__(self, function: object, *arguments: object, state: object = None) -> None:
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple:
        return self.call


def network(arch: str) -> OrderedDict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = parse_arch(arch).build().state_dict()
    for name, tensor in state.items():
        if name.endswith("bn1.weight"):
            tensor[3] = 40.0  # a channel that stands out
    return state


def result(name: str, state: Any, **entries: Any) -> dict[str, Any]:
    """An attack's result with the kinds of things that the data may hold."""
    data = {
        "poison_indicator": np.array([0, 1, 1, 0]),
        "images": np.zeros((2, 4, 4, 3), dtype=np.uint8),
        "share": np.float64(0.5),
        "labels": [3, 0, 0, 7],
        "folder": "record/badnet_0_1/bd_train_dataset",
        "tensor": torch.ones(2),
    }
    return {
        "model_name": name,
        "num_classes": 10,
        "model": state,
        "data_path": "./data/cifar10",
        "img_size": (32, 32, 3),
        "clean_data": "cifar10",
        "bd_train": data,
        "bd_test": {"x": torch.ones(1), "y": torch.zeros(1)},  # what looks like a state dict is none
        **entries,
    }


@pytest.fixture(scope="module")
def preact() -> OrderedDict[str, Tensor]:
    return network(PREACT)


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> LabelledImages:
    """Ten of the demo's images, in the place of a data set."""
    whole, _, _ = demo.load()
    few = LabelledImages(whole.images[::50], whole.labels[::50], whole.spec)
    monkeypatch.setattr("unbackdoor.data.load_dataset", lambda *_, **__: few)
    return few


def report(done: Run) -> dict[str, Any]:
    return json.loads(done.out)


@pytest.mark.parametrize(
    ("name", "arch"),
    [(PREACT, f"{PREACT}:num_classes=10"), ("resnet18", "torchvision:resnet18:num_classes=10")],
)
def test_scan_repair_and_the_way_back(tmp_path: Path, name: str, arch: str) -> None:
    if arch.startswith("torchvision"):
        pytest.importorskip("torchvision")
    source, output, plain = (tmp_path / file for file in ("attack_result.pt", "defense_result.pt", "m.safetensors"))
    state = network(arch)
    torch.save(result(name, state), source)
    before = source.read_bytes()

    found = run("scan", source, "--format", "json")
    assert (found.code, found.err) == (1, "")
    assert report(found)["arch"] == arch
    (remark,) = [remark for remark in report(found)["left_alone"] if remark["kind"] == "entries"]
    assert remark["path"] == "data_path, img_size, clean_data, bd_train, bd_test"
    assert "not read" in remark["reason"]
    assert "numpy.ndarray" in remark["reason"]

    assert run("repair", source, "-o", output).code == 0
    assert source.read_bytes() == before
    written = torch.load(output, weights_only=True)
    assert list(written) == ["model_name", "num_classes", "model"]
    assert (written["model_name"], written["num_classes"]) == (name, 10)
    assert list(written["model"]) == list(state)
    assert [k for k, t in written["model"].items() if (t.dtype, t.shape) != (state[k].dtype, state[k].shape)] == []
    changed = [k for k, t in written["model"].items() if not torch.equal(t, state[k])]
    assert changed
    assert len(changed) < len(state)
    parse_arch(arch).build().load_state_dict(written["model"])

    assert str(open_model(output).arch) == arch  # the repaired file says, too, what it is
    assert run("repair", source, "-o", plain).code == 0
    tensors = checkpoint.load(plain).tensors
    assert tensors.keys() == written["model"].keys()
    assert all(torch.equal(tensors[k], t) for k, t in written["model"].items())


def test_inspect_names_the_network(preact: OrderedDict[str, Tensor], tmp_path: Path) -> None:
    torch.save(result(PREACT, preact), tmp_path / "attack_result.pt")
    done = run("inspect", tmp_path / "attack_result.pt")
    assert done.code == 0
    assert f"network: {PREACT}:num_classes=10\nstate dict under 'model'\n" in done.out
    assert "bd_train" in done.out


def test_a_file_without_objects_is_read_the_same_way(preact: OrderedDict[str, Tensor], tmp_path: Path) -> None:
    torch.save(result(PREACT, preact, bd_train={"labels": [1, 2]}), tmp_path / "attack_result.pt")
    found = checkpoint.load(tmp_path / "attack_result.pt")
    assert (found.key, found.objects) == ("model", ())
    assert found.passed_over == ("data_path", "img_size", "clean_data", "bd_train", "bd_test")
    assert list(found.container) == ["model_name", "num_classes", "model"]


def test_another_file_with_these_names_keeps_all_it_has(preact: OrderedDict[str, Tensor], tmp_path: Path) -> None:
    content = {"model_name": PREACT, "num_classes": 10, "model": preact, "optimizer": {"lr": 0.1}}
    torch.save(content, tmp_path / "m.pt")
    assert run("repair", tmp_path / "m.pt", "-o", tmp_path / "out.pt", "--quiet").code == 0
    assert torch.load(tmp_path / "out.pt", weights_only=True)["optimizer"] == {"lr": 0.1}


def test_arch_goes_before_what_the_file_says(preact: OrderedDict[str, Tensor], tmp_path: Path) -> None:
    torch.save(result("vgg19_bn", preact), tmp_path / "attack_result.pt")
    assert scan(tmp_path / "attack_result.pt", arch=PREACT).arch == PREACT


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("wideresnet", {}),
        ("vgg19_bn", {}),
        (PREACT, {"num_classes": 43}),
        (PREACT, {"num_classes": -1}),
        (PREACT, {"num_classes": 10**18}),
        ("torchvision:resnet18", {}),
        ("stranger.py:build", {}),
        ("\x1b[31m" + "x" * 100_000, {}),
    ],
)
def test_a_network_that_is_not_known_or_not_there(
    images: LabelledImages, preact: OrderedDict[str, Tensor], tmp_path: Path, name: str, entries: dict[str, Any]
) -> None:
    path = tmp_path / "attack_result.pt"
    torch.save(result(name, preact, **entries), path)
    for words in (["evaluate", path], ["defend", path, "--method", "lpp", "--evaluate"]):
        line = refuse(*words, "--data", "cifar10")
        assert (
            f"its model_name {name[:40]!r} is not a known network that matches the file: not used; give the network"
            in line
        )
    found = scan(path)  # by names and order, and it says why
    assert found.arch is None
    assert [remark.reason for remark in found.left_alone if remark.path == "model_name"] == [
        f"{name[:40]!r} is not a known network that matches the file: not used"
    ]


def _stranger(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Any:
    """A module of the attacker's, which writes a canary when it is imported, and its class."""
    (folder / "stranger.py").write_text("class Container:\n    def __init__(self, *a): self.kept = list(a)\n")
    monkeypatch.syspath_prepend(folder)
    module = __import__("stranger")
    monkeypatch.delitem(sys.modules, "stranger", raising=False)
    (folder / "stranger.py").write_text("open('canary', 'w')\n")
    monkeypatch.setitem(sys.modules, "stranger", module)  # as long as the file is being written
    return module


def _guarded(path: Path, output: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", GUARDED, path, output], cwd=path.parent, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not (path.parent / "canary").exists()
    return done.stdout.strip()


@pytest.mark.parametrize("zipped", [True, False])
def test_classes_of_others_are_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool) -> None:
    container = _stranger(monkeypatch, tmp_path).Container
    data = [container(1), Calls(container, 1, state={"a": 2}), container, PurePosixPath("a/b"), {container(2): 1}]
    path, output = tmp_path / "attack_result.pt", tmp_path / "defense_result.pt"
    state = OrderedDict(w=torch.arange(6.0).view(2, 3), tied=torch.nn.Parameter(torch.ones(2)))
    state["w"].hidden = container(3)  # comes along with the tensor, and with the dict
    state._metadata = {"": container(4)}  # type: ignore[attr-defined]
    torch.save(result("net", state, bd_train=data), path, _use_new_zipfile_serialization=zipped)
    assert _guarded(path, output) == "read"
    written = torch.load(output, weights_only=True)
    assert list(written) == ["model_name", "num_classes", "model"]
    assert torch.equal(written["model"]["w"], state["w"])
    assert b"stranger" not in output.read_bytes()
    allowed = set(torch.serialization.get_safe_globals())
    found = open_model(path)
    assert set(torch.serialization.get_safe_globals()) == allowed
    assert "stranger.Container" in found.checkpoint.objects
    (remark,) = [remark for remark in found.graph.aside if remark.kind == "entries"]
    assert "whose code runs if another program opens this file" in remark.reason


@pytest.mark.parametrize(
    ("what", "where", "zipped"),
    [
        ("os.system", "bd_train", True),
        ("os.system", "bd_train", False),
        ("exec", "bd_train", True),
        ("getattr", "bd_train", True),
        ("Popen", "model", True),
        ("getoutput", "bd_train", True),
        ("getoutput", "model_name", False),
    ],
)
def test_a_call_of_pythons_own_is_refused_and_never_made(tmp_path: Path, what: str, where: str, zipped: bool) -> None:
    canary = str(tmp_path / "canary")
    evil = {
        "os.system": Calls(os.system, f"touch '{canary}'"),
        "exec": Calls(exec, f"open({canary!r}, 'w')"),
        "getattr": Calls(getattr, canary, "join"),
        "Popen": Calls(subprocess.Popen, ["touch", canary]),
        "getoutput": Calls(subprocess.getoutput, f"touch '{canary}'"),
    }[what]
    path = tmp_path / "attack_result.pt"
    torch.save(
        result("net", {"w": torch.ones(2)}, **{where: [evil] if where == "bd_train" else evil}),
        path,
        _use_new_zipfile_serialization=zipped,
    )
    message = _guarded(path, tmp_path / "out.pt")
    assert "refused: it holds pickled objects besides tensors (" in message
    assert what.rpartition(".")[2] in message
    assert not (tmp_path / "out.pt").exists()


def test_the_network_itself_holds_no_objects(tmp_path: Path) -> None:
    for value in (np.array("net"), {"w": torch.ones(1), "x": np.array("net")}):
        torch.save(result(PREACT, value), tmp_path / "m.pt")
        with pytest.raises(CheckpointError, match="refused: it holds pickled objects besides tensors"):
            checkpoint.load(tmp_path / "m.pt")


@pytest.mark.parametrize("entry", ["model_name", "num_classes"])
def test_what_names_the_network_is_no_object(tmp_path: Path, entry: str, preact: OrderedDict[str, Tensor]) -> None:
    """The weights are plain, and are read as any file's; the name is passed over, and not believed."""
    torch.save(result(PREACT, preact, **{entry: np.int64(10)}), tmp_path / "m.pt")
    file = open_model(tmp_path / "m.pt")
    assert (file.arch, file.checkpoint.key) == (None, "model")
    assert entry in file.checkpoint.passed_over


def test_more_classes_than_any_data_need(tmp_path: Path) -> None:
    kinds = [type(f"Kind{number}", (), {"__module__": __name__}) for number in range(100)]
    globals().update({kind.__name__: kind for kind in kinds})
    torch.save(result("net", {"w": torch.ones(1)}, bd_train=kinds), tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="refused: it holds pickled objects"):
        checkpoint.load(tmp_path / "m.pt")


def test_evaluate_writes_the_table(images: LabelledImages, preact: OrderedDict[str, Tensor], tmp_path: Path) -> None:
    source, table = tmp_path / "attack_result.pt", tmp_path / "rates.csv"
    torch.save(result(PREACT, preact), source)
    words = ("evaluate", source, "--data", "cifar10", "--csv", table, "--format", "json")
    done = run(*words, "--attack", ATTACK)
    assert (done.code, done.err) == (0, "")
    rates = report(done)["result"]
    assert len(table.read_text().splitlines()) == 2
    (row,) = csv.DictReader(table.open())
    assert list(row) == ["test_acc", "test_asr", "test_ra"]
    assert {f"test_{name}": str(rate["value"]) for name, rate in rates.items() if name != "recall"} == row
    assert "already exists and was not changed; use --force" in refuse(*words)
    assert (run(*words, "--force").code, table.read_text().splitlines()[1][-2:]) == (0, ",,")  # without an attack
    assert "is the input file" in refuse("evaluate", source, "--data", "cifar10", "--csv", source, "--force")


def test_defend_writes_both(images: LabelledImages, preact: OrderedDict[str, Tensor], tmp_path: Path) -> None:
    source, output, table = (tmp_path / name for name in ("attack_result.pt", "defense_result.pt", "rates.csv"))
    record = tmp_path / "record.json"
    torch.save(result(PREACT, preact), source)
    words = ("defend", source, "--method", "clp", "--data", "cifar10", "--attack", ATTACK, "--csv", table)
    assert run(*words, "-o", output, "--record", record).code == 0
    (row,) = csv.DictReader(table.open())
    after = json.loads(record.read_text())["after"]
    assert row == {f"test_{name}": str(rate["value"]) for name, rate in after.items() if name != "recall"}
    assert str(tmp_path) not in record.read_text()
    assert type(load_model(output)).__name__ == "PreActResNet"
    assert "rates.csv: already exists" in refuse(*words)
    assert "expected different files for -o, --report, --record and --csv" in refuse(*words, "--record", table)
