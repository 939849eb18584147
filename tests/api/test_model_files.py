"""`scan`, `repair` and `load_model` on model files: what a stranger wrote never runs, hangs or gets lost."""

import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from unbackdoor import checkpoint
from unbackdoor.api import ARCH_KEY, diff, load_model, open_model, repair, scan
from unbackdoor.defences.data_free import CLP, LPP
from unbackdoor.errors import ArchitectureError, CheckpointError, IncompleteError, OutputError, SettingError
from unbackdoor.models import parse_arch

Build = Callable[..., nn.Module]
TINY_NET = Path(__file__).parents[1] / "conftest.py"

# Reads a file in a process of its own, where any sign of foreign code or of the network ends the process at once.
GUARDED = """
import os, resource, sys
import torch
from unbackdoor.api import load_model, scan
from unbackdoor.errors import ArchitectureError

FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect")

def watch(event, arguments):
    foreign = any(word in str(arguments[:1]) for word in ("canary", "evil", "torchvision", "timm"))
    if event.startswith(FORBIDDEN) or event in ("open", "import", "compile") and foreign:
        os.write(2, f"FORBIDDEN {event} {arguments}".encode())
        os._exit(99)

sys.addaudithook(watch)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    report = scan(path)
    assert report.arch is None, report.arch
    (remark,) = [remark for remark in report.left_alone if remark.path == "unbackdoor.arch"]
    assert remark.reason.endswith(": not used"), remark
    try:
        load_model(path)
    except ArchitectureError as error:
        assert "give the network" in str(error)
    else:
        raise AssertionError(path)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""

HOSTILE_ARCHES = [
    "{folder}/evil.py:build",
    "evil.py:build",
    "evil.py:build:num_classes=10",
    "./evil.py:build",
    "torchvision:resnet18",
    "timm:resnet18",
    "torchvision:",
    "resnet18:width=1000000000000",
    "resnet18:num_classes=1000000000",
    "resnet18:width=100000",
    "resnet18:width=" + "9" * 60,
    "resnet18:width=" + "9" * 5000,
    "resnet18:width=0",
    "resnet18:width=-8",
    "resnet18:width=1e300",
    "resnet18:width=nan",
    "resnet18:width=true",
    "resnet18:device=cuda",
    "resnet18:__class__=1",
    "resnet18:width=8,width=8",
    "resnet18:width=9",
    "vgg19_bn",
    "garbage",
    "",
    "\x1b[31m<script>",
    "x" * 1_000_000,
    ".py:a:" * 150_000 + "\n",  # a regular expression would look at it for ten minutes
    "resnet18:" + "a=1," * 200_000,
]


@pytest.fixture
def state() -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return parse_arch("resnet18:width=8").build().state_dict()


def test_a_hostile_name_of_a_network_runs_nothing_and_costs_nothing(state: dict[str, Tensor], tmp_path: Path) -> None:
    pytest.importorskip("resource")
    (tmp_path / "evil.py").write_text("open('canary', 'w')\ndef build(**options): open('canary', 'w')\n")
    paths = []
    for number, arch in enumerate(HOSTILE_ARCHES):
        paths.append(tmp_path / f"{number}.safetensors")
        checkpoint.save(paths[-1], state, metadata={ARCH_KEY: arch.replace("{folder}", str(tmp_path))})
    done = subprocess.run(
        [sys.executable, "-c", GUARDED, *paths], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert float(done.stdout) < 300  # megabytes, over all files
    assert not (tmp_path / "canary").exists()


def test_the_packages_own_name_is_used_when_it_fits(state: dict[str, Tensor], tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "m.safetensors", state, metadata={ARCH_KEY: "resnet18:width=8"})
    file = open_model(tmp_path / "m.safetensors")
    assert str(file.arch) == "resnet18:width=8"
    assert {layer.rule for layer in file.graph.layers} == {"arch"}
    assert scan(tmp_path / "m.safetensors").complete
    assert type(load_model(tmp_path / "m.safetensors")).__name__ == "ResNet"


def test_what_the_user_says_goes_before_what_the_file_says(state: dict[str, Tensor], tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "m.safetensors", state, metadata={ARCH_KEY: "vgg19"})
    assert scan(tmp_path / "m.safetensors", arch="resnet18:width=8").complete
    assert scan(tmp_path / "m.safetensors", arch=parse_arch("resnet18:width=8")).complete
    checkpoint.save(
        tmp_path / "n.safetensors",
        parse_arch("vgg19:width=2").build().state_dict(),
        metadata={ARCH_KEY: "vgg19:width=2"},
    )
    with pytest.raises(ArchitectureError, match="is not resnet18"):
        scan(tmp_path / "n.safetensors", arch="resnet18")


@pytest.mark.parametrize(
    "arch", ["vit_small:depth=1000000000", "resnet18:width=999999999", "densenet121:growth=100000000000"]
)
def test_a_network_larger_than_the_file_that_names_it_is_not_built(arch: str, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "m.safetensors", {"a.weight": torch.zeros(4, 4)}, metadata={ARCH_KEY: arch})
    report = scan(tmp_path / "m.safetensors")
    assert any(remark.path == ARCH_KEY and "not used" in remark.reason for remark in report.left_alone)


def test_older_files_without_batch_counters_are_read(state: dict[str, Tensor], tmp_path: Path) -> None:
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    checkpoint.save(tmp_path / "old.pt", old)
    assert scan(tmp_path / "old.pt", arch="resnet18:width=8").complete
    repair(tmp_path / "old.pt", tmp_path / "out.pt", arch="resnet18:width=8")
    assert checkpoint.load(tmp_path / "out.pt").tensors.keys() == old.keys()
    load_model(tmp_path / "out.pt", arch="resnet18:width=8")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("before", "after"), [("pt", "pt"), ("pt", "safetensors"), ("safetensors", "pt")])
def test_what_was_not_repaired_is_the_same_to_the_bit(
    state: dict[str, Tensor], tmp_path: Path, dtype: torch.dtype, before: str, after: str
) -> None:
    for tensor in state.values():
        if tensor.is_floating_point():
            tensor.data = tensor.to(dtype)
    state["layer1.0.bn2.bias"][0] = float("-0.0")
    state["layer1.0.conv1.weight"][3] *= 40
    source, output = tmp_path / f"in.{before}", tmp_path / f"out.{after}"
    checkpoint.save(source, state, metadata={"author": "me"} if before == "safetensors" else None)
    content = source.read_bytes()
    plan = LPP().plan(
        open_model(source, arch="resnet18:width=8").source, graph=open_model(source, arch="resnet18:width=8").graph
    )
    report = repair(source, output, arch="resnet18:width=8")
    assert report.pruned > 0
    assert source.read_bytes() == content
    written = checkpoint.load(output).tensors
    assert {name: tensor.dtype for name, tensor in written.items()} == {n: t.dtype for n, t in state.items()}
    changed = {difference.name: difference.channels for difference in diff(source, output)}
    assert set(changed) <= {edit.name for edit in plan.edits}
    assert 3 in changed["layer1.0.bn1.weight"]
    for name, channels in changed.items():
        edited = {int(i) for edit in plan.edits if edit.name == name for i in torch.as_tensor(edit.index[0]).flatten()}
        assert set(channels) <= edited


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "net", None])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_torch_file_keeps_everything_else(tiny_net: Build, tmp_path: Path, wrapper: str | None, prefix: str) -> None:
    model = tiny_net()
    optimiser = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3, 4, 4)).sum().backward()
    optimiser.step()
    weights = OrderedDict((prefix + name, tensor) for name, tensor in model.state_dict().items())
    weights._metadata = model.state_dict()._metadata
    content = weights if wrapper is None else {"epoch": 7, wrapper: weights, "optimizer": optimiser.state_dict()}
    torch.save(content, tmp_path / "in.pt")
    repair(tmp_path / "in.pt", tmp_path / "out.pt", method=LPP(upper=1.2))
    out = torch.load(tmp_path / "out.pt", weights_only=True)
    if wrapper is not None:
        assert list(out) == ["epoch", wrapper, "optimizer"]
        assert out["epoch"] == 7
        momenta = out["optimizer"]["state"][0]["exp_avg"]
        assert torch.equal(momenta, optimiser.state_dict()["state"][0]["exp_avg"])
        optimiser.load_state_dict(out["optimizer"])
        out = out[wrapper]
    assert type(out) is OrderedDict
    assert list(out) == list(weights)
    assert out._metadata == weights._metadata
    assert any(not torch.equal(out[name], weights[name]) for name in out)


@pytest.mark.parametrize(
    ("name", "value"),
    [("bn1.running_var", torch.nan), ("conv2.weight", torch.nan), ("bn2.weight", torch.inf), ("bn1.running_var", -1.0)],
)
def test_a_file_that_is_broken_as_a_whole_is_not_repaired(
    tiny_net: Build, tmp_path: Path, name: str, value: float
) -> None:
    state = tiny_net(channels=16).state_dict()
    state[name].fill_(value)
    torch.save(state, tmp_path / "in.pt")
    for arch in (None, f"{TINY_NET}:TinyNet:channels=16"):
        with pytest.raises(
            (CheckpointError, IncompleteError), match="damaged" if arch else "nothing was written"
        ) as caught:
            repair(tmp_path / "in.pt", tmp_path / "out.pt", arch=arch, partial=arch is not None)
        assert "nothing was written" in str(caught.value)
        if isinstance(caught.value, CheckpointError):
            assert name in str(caught.value)
    assert not (tmp_path / "out.pt").exists()


def test_one_broken_channel_is_cut_and_said(tiny_net: Build, tmp_path: Path) -> None:
    state = tiny_net(channels=16).state_dict()
    state["bn1.running_var"][3] = torch.nan
    torch.save(state, tmp_path / "in.pt")
    report = repair(tmp_path / "in.pt", tmp_path / "out.pt")
    assert report.layers[0].not_finite == (3,)
    written = torch.load(tmp_path / "out.pt", weights_only=True)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in written.values())


class Tied(nn.Module):
    """Two convolutions with one weight; the classifier is under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.a, self.b = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        self.b.weight = self.a.weight
        self.fc = nn.Linear(16, 4)
        self.head = self.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(self.stem(x))).mean((2, 3)))


def test_tied_tensors_are_scored_once_and_stay_tied(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = Tied().state_dict()
    state["stem.weight"][3] *= 50
    state["a.weight"][5] *= 50
    torch.save(state, tmp_path / "in.pt")
    arch = f"{__file__}:Tied"
    report = repair(tmp_path / "in.pt", tmp_path / "out.pt", arch=arch)
    assert [layer.path for layer in report.layers] == ["stem", "a"]
    assert report.layers[0].pruned_high == (3,)
    assert (report.layers[1].pruned_high, report.layers[1].immutable) == ((), (5,))
    out = torch.load(tmp_path / "out.pt", weights_only=True)
    assert not out["stem.weight"][3].any()
    assert torch.equal(out["a.weight"], state["a.weight"])
    for one, other in (("a.weight", "b.weight"), ("fc.weight", "head.weight"), ("fc.bias", "head.bias")):
        assert out[one].data_ptr() == out[other].data_ptr()
    repair(tmp_path / "in.pt", tmp_path / "out.safetensors", arch=arch)
    assert diff(tmp_path / "out.pt", tmp_path / "out.safetensors") == []


def test_memory_that_only_the_file_shares_is_no_tie(state: dict[str, Tensor], tmp_path: Path) -> None:
    """Two norms of the network whose gammas the file keeps in one place: one is repaired, the other is not."""
    state["layer1.0.conv1.weight"][3] *= 50
    state["layer1.0.bn2.weight"] = state["layer1.0.bn1.weight"]
    torch.save(state, tmp_path / "in.pt")
    repair(tmp_path / "in.pt", tmp_path / "out.pt", arch="resnet18:width=8", method=LPP(upper=2.5, band=0))
    out = torch.load(tmp_path / "out.pt", weights_only=True)
    assert not out["layer1.0.bn1.weight"][3]
    assert torch.equal(out["layer1.0.bn2.weight"], state["layer1.0.bn2.weight"])


def test_a_repair_of_a_file_and_of_the_network_in_memory_agree(state: dict[str, Tensor], tmp_path: Path) -> None:
    state["layer1.0.conv1.weight"][3] *= 50
    checkpoint.save(tmp_path / "in.safetensors", state)
    for method in (LPP(), LPP.as_printed(), LPP.either_norm(), CLP(), LPP(scale="weight")):
        report = repair(
            tmp_path / "in.safetensors",
            tmp_path / "out.safetensors",
            method=method,
            arch="resnet18:width=8",
            overwrite=True,
        )
        outcome = method(load_model(tmp_path / "in.safetensors", arch="resnet18:width=8"))
        checkpoint.save(tmp_path / "memory.safetensors", outcome.model.state_dict(), overwrite=True)
        assert diff(tmp_path / "out.safetensors", tmp_path / "memory.safetensors") == []
        assert [layer.pruned for layer in report.layers] == [layer.pruned for layer in outcome.report.layers]


def test_not_a_number_is_cut_and_said(tiny_net: Build, tmp_path: Path) -> None:
    state = tiny_net().state_dict()
    state["conv1.weight"][2, 0, 0, 0] = float("nan")
    checkpoint.save(tmp_path / "in.pt", state)
    report = repair(tmp_path / "in.pt", tmp_path / "out.pt")
    assert report.layers[0].not_finite == (2,)
    model = tiny_net()
    model.load_state_dict(checkpoint.load(tmp_path / "out.pt").tensors)
    assert model(torch.ones(1, 3, 4, 4)).isfinite().all()


def test_nothing_is_written_when_it_is_incomplete(tmp_path: Path) -> None:
    state = parse_arch("preactresnet18:width=2").build().state_dict()
    checkpoint.save(tmp_path / "in.safetensors", state)
    with pytest.raises(IncompleteError, match="parts of the network could not be read or paired") as caught:
        repair(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert not caught.value.report.complete
    assert caught.value.report.action == "plan"
    assert os.listdir(tmp_path) == ["in.safetensors"]
    report = repair(tmp_path / "in.safetensors", dry_run=True)
    assert (report.action, report.complete, report.output) == ("plan", False, None)


def test_an_output_is_needed(tiny_net: Build, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "in.pt", tiny_net().state_dict())
    with pytest.raises(SettingError, match="expected an output"):
        repair(tmp_path / "in.pt")
    with pytest.raises(OutputError, match="is the input file"):
        repair(tmp_path / "in.pt", tmp_path / "in.pt", overwrite=True, dry_run=True)


def test_what_cannot_be_stored_where_it_should_go(tiny_net: Build, tmp_path: Path) -> None:
    """`__metadata__` is a name that a safetensors file keeps for itself."""
    state = {**tiny_net().state_dict(), "__metadata__": torch.ones(1)}
    torch.save(state, tmp_path / "in.pt")
    with pytest.raises(OutputError, match="safetensors cannot hold these tensors"):
        repair(tmp_path / "in.pt", tmp_path / "out.safetensors")
    assert os.listdir(tmp_path) == ["in.pt"]


def test_a_file_that_reads_back_otherwise_is_said(
    tiny_net: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path / "in.pt", tiny_net().state_dict())
    save = checkpoint.save

    def damage(path: Path, tensors: dict[str, Tensor], **options: object) -> None:
        save(path, {**tensors, "fc.bias": torch.zeros(10)}, **options)

    monkeypatch.setattr("unbackdoor.checkpoint.save", damage)
    with pytest.raises(CheckpointError, match="the file on the disk differs from what was written; do not use it"):
        repair(tmp_path / "in.pt", tmp_path / "out.pt")


def test_a_weight_computed_by_a_parametrization(tmp_path: Path) -> None:
    """The file holds what the weight is computed from: a network is needed to score it."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\nfrom torch.nn.utils.parametrizations import spectral_norm\n"
        "def build(): return nn.Sequential(spectral_norm(nn.Conv2d(3, 16, 3)), nn.BatchNorm2d(16), nn.Flatten(),"
        " nn.Linear(16, 2))\n"
    )
    arch = f"{tmp_path / 'net.py'}:build"
    checkpoint.save(tmp_path / "in.pt", parse_arch(arch).build().state_dict())
    report = repair(tmp_path / "in.pt", tmp_path / "out.pt", arch=arch, method=LPP(upper=1))
    assert (report.complete, report.layers[0].pruned != ()) == (True, True)
    assert scan(tmp_path / "in.pt", arch=arch, method=LPP(upper=1)).layers == report.layers


def test_loading_whole_numbers_into_a_network(state: dict[str, Tensor], tmp_path: Path) -> None:
    state["fc.weight"] = state["fc.weight"].to(torch.int8)
    checkpoint.save(tmp_path / "m.pt", state)
    with pytest.raises(CheckpointError, match=r"'fc.weight': expected floating-point numbers, got int8"):
        load_model(tmp_path / "m.pt", arch="resnet18:width=8")
    assert not scan(tmp_path / "m.pt", arch="resnet18:width=8").layers[-1].path.startswith("fc")


def test_a_network_is_scanned_as_it_is(tiny_net: Build) -> None:
    model = tiny_net().train()
    report = scan(model, method=LPP(upper=1.2))
    assert (report.action, report.source, report.pruned > 0) == ("scan", None, True)
    assert model.training
