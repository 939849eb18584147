"""Model files as they circulate: what lies beside the weights, where they lie, and what they are called."""

import argparse
import functools
import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from layer_zoo import calibrate
from unbackdoor import LPP, checkpoint
from unbackdoor.api import diff, load_model, open_model, repair, scan
from unbackdoor.errors import ArchitectureError, CheckpointError, IncompleteError
from unbackdoor.findings import Report
from unbackdoor.models import parse_arch

ARCH = "resnet18:width=16"


@pytest.fixture
def state() -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = parse_arch(ARCH).build().state_dict()
    state["layer1.0.conv1.weight"][3] *= 50  # an outlier
    return state


def _reasons(report: Report, path: str) -> list[str]:
    return [remark.reason for remark in report.left_alone if remark.path == path]


def _repaired(content: Any, folder: Path, **options: Any) -> tuple[Any, Report]:
    """What a repaired copy of a file with this content holds."""
    torch.save(content, folder / "in.pt")
    report = repair(folder / "in.pt", folder / "out.pt", **{"arch": ARCH, **options})
    assert report.pruned > 0
    return torch.load(folder / "out.pt", weights_only=True), report


def _check_edits(new: dict[str, Tensor], old: dict[str, Tensor], gamma: str) -> None:
    """Names, order, shapes and dtypes are the old ones, the outlier is off, and what differs is little."""
    assert list(new) == list(old)
    assert [name for name in old if (new[name].shape, new[name].dtype) != (old[name].shape, old[name].dtype)] == []
    assert new[gamma][3] == 0
    changed = [name for name in old if not torch.equal(new[name], old[name])]
    assert 0 < len(changed) < len(old) / 2


class Words(dict):
    """A dict of somebody's own, as configurations are."""


class Items(list):
    """A list of somebody's own."""


BESIDE = {
    "namespace": argparse.Namespace(lr=0.1, inner=argparse.Namespace(data=PurePosixPath("/x"))),
    "numpy scalar": np.float64(93.1),
    "numpy array": np.zeros(4),
    "numpy objects": np.array([argparse.Namespace(a=1), None], dtype=object),
    "path": PurePosixPath("/x"),
    "dict of one's own": Words(a=1, b={"c": 2}),
    "list of one's own": Items([1, 2, Items([3])]),
    "default dict": defaultdict(list, a=[1]),
    "partial": functools.partial(Words, 3),
    "class": Words,
    "module": nn.Linear(2, 2),
}


@pytest.mark.parametrize(
    ("what", "zipped"), [*((what, True) for what in BESIDE), ("namespace", False), ("class", False)]
)
def test_objects_beside_the_weights(state: dict[str, Tensor], tmp_path: Path, what: str, zipped: bool) -> None:
    content = {"epoch": 3, "args": BESIDE[what], "deep": {"plain": [1, 2.5, "x"], "object": BESIDE[what]}, "net": state}
    torch.save(content, tmp_path / "in.pt", _use_new_zipfile_serialization=zipped)
    report = repair(tmp_path / "in.pt", tmp_path / "out.pt", arch=ARCH)
    (reason,) = _reasons(report, "args, deep.object")
    assert reason.startswith("not read, and not kept by a repair; they hold pickled objects")
    out = torch.load(tmp_path / "out.pt", weights_only=True)  # plain data alone
    assert list(out) == ["epoch", "deep", "net"]
    assert (out["epoch"], out["deep"]) == (3, {"plain": [1, 2.5, "x"]})
    _check_edits(out["net"], state, "layer1.0.bn1.weight")
    assert repair(tmp_path / "out.pt", dry_run=True, arch=ARCH).complete


def test_an_object_in_a_list_leaves_its_place(state: dict[str, Tensor], tmp_path: Path) -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    out, report = _repaired([argparse.Namespace(a=1), {"net": state, "loop": loop}, (2, np.float64(1))], tmp_path)
    assert out[0] is None
    assert out[2] == (2, None)
    assert out[1]["loop"][1] is out[1]["loop"]
    assert _reasons(report, "0, 2.1")
    _check_edits(out[1]["net"], state, "layer1.0.bn1.weight")


@pytest.mark.parametrize("extra", [{"a": 1}, argparse.Namespace(a=1), torch.ones(2)], ids=["dict", "object", "tensor"])
def test_extra_state_and_numbers_among_the_weights(state: dict[str, Tensor], tmp_path: Path, extra: Any) -> None:
    if isinstance(extra, Tensor):  # to the network that is a tensor too many
        torch.save({**state, "_extra_state": extra}, tmp_path / "in.pt")
        with pytest.raises(ArchitectureError, match="tensors that this network does not have: 1"):
            scan(tmp_path / "in.pt", arch=ARCH)
        return
    out, _ = _repaired({**state, "_extra_state": extra, "epoch": 3}, tmp_path)
    assert out.pop("epoch") == 3
    assert out.pop("_extra_state", None) == (extra if isinstance(extra, dict) else None)
    _check_edits(out, state, "layer1.0.bn1.weight")


def test_an_object_in_the_place_of_a_weight_is_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"net": {**state, "fc.weight": np.ones((10, 32))}}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="'fc.weight' is a pickled object, not a tensor; ask its author"):
        scan(tmp_path / "m.pt")


@pytest.mark.parametrize(
    ("wrap", "key", "place"),
    [
        (lambda s: {"model": {"args": {"a": 1}, "state_dict": s}, "optimizer": {}}, "model.state_dict", None),
        (lambda s: {"a": {"b": {"c": s}}}, "a.b.c", None),
        (lambda s: {"a.b": s, "a": {"b": 3}}, "a.b", None),
        (lambda s: [s, 3], "0", None),
        (lambda s: (s, {"a": 1}), "0", None),
        (lambda s: {"nets": [{"x": 1}, s]}, "nets.1", None),
        (lambda s: {"state_dict": s, "ema": None}, "state_dict", None),
        (lambda s: {"model": s, "rng": torch.get_rng_state(), "rngs": {"cpu": torch.get_rng_state()}}, "model", None),
        (lambda s: {"netC": s, "grid": torch.rand(1, 2, 2, 2), "best": torch.tensor(1.0)}, "netC", None),
    ],
)
@pytest.mark.parametrize("given", [True, False])
def test_where_the_weights_are(
    state: dict[str, Tensor], tmp_path: Path, wrap: Callable[..., Any], key: str, place: None, given: bool
) -> None:
    content = wrap(state)
    out, _ = _repaired(content, tmp_path, key=key if given else None)
    found = checkpoint.load(tmp_path / "out.pt")
    assert found.key == key
    _check_edits(dict(found.tensors), state, "layer1.0.bn1.weight")
    assert type(out) is type(content)
    assert len(out) == len(content)
    assert open_model(tmp_path / "in.pt", key=key if given else None).arch is None


def test_what_else_is_in_a_file_is_said_to_be_kept(state: dict[str, Tensor], tmp_path: Path) -> None:
    _, report = _repaired({"model": {"args": 1, "state_dict": state}, "optimizer": {"state": {}}}, tmp_path)
    (reason,) = _reasons(report, "optimizer, model.args")
    assert "an optimizer's state belongs to the weights before the repair" in reason
    report = repair(tmp_path / "in.pt", tmp_path / "out.safetensors", arch=ARCH)
    assert [r.path for r in report.left_alone if "only holds weights" in r.reason] == ["optimizer", "model.args"]


def test_an_average_beside_the_weights(state: dict[str, Tensor], tmp_path: Path) -> None:
    other = {name: tensor.clone() for name, tensor in state.items()}
    torch.save({"state_dict": state, "state_dict_ema": other, "epoch": 3}, tmp_path / "in.pt")
    for arch, said in ((ARCH, "this network several times"), (None, "several state dicts")):
        with pytest.raises(CheckpointError, match=f"holds {said}: 'state_dict', 'state_dict_ema'; choose one with"):
            scan(tmp_path / "in.pt", arch=arch)
    report = repair(tmp_path / "in.pt", tmp_path / "out.pt", arch=ARCH, key="state_dict_ema")
    assert _reasons(report, "state_dict") == ["not read: only 'state_dict_ema' is; a repair leaves them unchanged"]
    out = torch.load(tmp_path / "out.pt", weights_only=True)
    assert all(torch.equal(out["state_dict"][name], state[name]) for name in state)
    _check_edits(out["state_dict_ema"], state, "layer1.0.bn1.weight")


def test_an_average_among_the_weights(state: dict[str, Tensor], tmp_path: Path) -> None:
    both = {f"{head}.{name}": tensor.clone() for head in ("model", "ema.module") for name, tensor in state.items()}
    torch.save({"state_dict": both}, tmp_path / "in.pt")
    with pytest.raises(CheckpointError, match=r"'state_dict\.model', 'state_dict\.ema\.module'|'state_dict\.ema"):
        scan(tmp_path / "in.pt", arch=ARCH)
    report = scan(tmp_path / "in.pt", arch=ARCH, key="state_dict.ema")
    assert not report.complete  # the others are weights too, and nobody looked at them
    assert "outside the network, whose names begin with 'ema.module.'" in report.not_covered[0].reason
    repair(tmp_path / "in.pt", tmp_path / "out.pt", arch=ARCH, key="state_dict.ema", partial=True)
    out = torch.load(tmp_path / "out.pt", weights_only=True)["state_dict"]
    assert list(out) == list(both)
    assert out["ema.module.layer1.0.bn1.weight"][3] == 0
    assert all(torch.equal(out[name], both[name]) for name in both if name.startswith("model."))


def test_the_one_network_that_the_architecture_is(state: dict[str, Tensor], tmp_path: Path) -> None:
    other = parse_arch("preactresnet18:width=2").build().state_dict()
    out, report = _repaired({"netG": other, "netC": state}, tmp_path)
    _check_edits(out["netC"], state, "layer1.0.bn1.weight")
    assert all(torch.equal(out["netG"][name], other[name]) for name in other)
    assert _reasons(report, "netG")


@pytest.mark.parametrize(
    "prefix",
    ["model.", "module.", "net.", "netC.", "encoder.module.", "_orig_mod.module.", "1.", "module.1.", "backbone.body."],
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_prefix_is_found_and_kept(state: dict[str, Tensor], tmp_path: Path, prefix: str, suffix: str) -> None:
    wrapped = {prefix + name: tensor for name, tensor in state.items()}
    checkpoint.save(tmp_path / f"in.{suffix}", wrapped)
    report = repair(tmp_path / f"in.{suffix}", tmp_path / f"out.{suffix}", arch=ARCH)
    assert report.complete
    contents = checkpoint.read(tmp_path / f"out.{suffix}")
    out = {name: contents.at(())[name] for name in wrapped}
    assert contents.at(()).keys() == wrapped.keys()
    _check_edits(out, wrapped, f"{prefix}layer1.0.bn1.weight")
    assert torch.equal(load_model(tmp_path / f"out.{suffix}", arch=ARCH).fc.weight, out[f"{prefix}fc.weight"])
    by_names = scan(tmp_path / f"in.{suffix}")  # without the architecture: read, under whatever names
    assert by_names.arch is None
    assert suffix == "safetensors" or any(layer.path.endswith("layer1.0.conv1") for layer in by_names.layers)


@pytest.mark.parametrize("where", ["n_averaged", "criterion.weight"])
def test_small_tensors_outside_of_the_prefix(state: dict[str, Tensor], tmp_path: Path, where: str) -> None:
    if where == "n_averaged":
        content = AveragedModel(_network(state)).state_dict()
        prefix = "module."
    else:
        content = OrderedDict({**{"model." + name: tensor for name, tensor in state.items()}, where: torch.ones(10)})
        prefix = "model."
    out, report = _repaired(content, tmp_path)
    _check_edits(out, content, f"{prefix}layer1.0.bn1.weight")
    assert torch.equal(out[where], content[where])
    (reason,) = _reasons(report, where)
    assert reason == f"outside the network, whose names begin with {prefix!r}: not read, and left unchanged by a repair"


def _network(state: dict[str, Tensor]) -> nn.Module:
    model = parse_arch(ARCH).build()
    model.load_state_dict(state)
    return model


def test_matrices_outside_of_the_prefix_make_it_incomplete(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({**{"model." + n: t for n, t in state.items()}, "head.weight": torch.ones(4, 10)}, tmp_path / "m.pt")
    report = scan(tmp_path / "m.pt", arch=ARCH)
    assert [remark.path for remark in report.not_covered] == ["head.weight"]


@pytest.mark.parametrize("lack", ["fc.bias", "layer1.0.conv1.weight", "bn1.running_var"])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_every_name_and_shape_must_be_there(state: dict[str, Tensor], tmp_path: Path, lack: str, prefix: str) -> None:
    wrapped = {prefix + name: tensor for name, tensor in state.items()}
    fewer = {name: tensor for name, tensor in wrapped.items() if name != prefix + lack}
    torch.save(fewer, tmp_path / "fewer.pt")
    with pytest.raises(ArchitectureError, match=f"missing from the file: 1 \\({lack}\\)"):
        scan(tmp_path / "fewer.pt", arch=ARCH)
    torch.save({**wrapped, prefix + "more.weight": torch.ones(2, 2)}, tmp_path / "more.pt")
    with pytest.raises(ArchitectureError, match=r"that this network does not have: 1 \(more.weight\)"):
        scan(tmp_path / "more.pt", arch=ARCH)
    torch.save(wrapped, tmp_path / "in.pt")
    with pytest.raises(ArchitectureError, match="its classifier has 10 rows: try resnet18:width=16,num_classes=10"):
        scan(tmp_path / "in.pt", arch=f"{ARCH},num_classes=7")


def test_kuanglius_resnet(state: dict[str, Tensor], tmp_path: Path) -> None:
    old = OrderedDict(
        (name.replace("downsample", "shortcut").replace("fc.", "linear."), tensor) for name, tensor in state.items()
    )
    out, report = _repaired({"net": {"module." + name: tensor for name, tensor in old.items()}, "acc": 95.1}, tmp_path)
    _check_edits(out["net"], {"module." + name: tensor for name, tensor in old.items()}, "module.layer1.0.bn1.weight")
    assert any("has another name in the file" in remark.reason for remark in report.left_alone)
    model = load_model(tmp_path / "in.pt", arch=ARCH)
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in state)
    plain = {name: layer.scores for name, layer in ((x.path, x) for x in report.layers)}
    torch.save(state, tmp_path / "new.pt")
    assert {layer.path: layer.scores for layer in scan(tmp_path / "new.pt", arch=ARCH).layers} == plain


def test_names_that_would_fall_together_are_left(tmp_path: Path) -> None:
    """A network with both `fc` and `linear` is read by its own names, and not with them exchanged."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def build(): return nn.ModuleDict({'fc': nn.Linear(4, 4), 'linear': nn.Linear(4, 4)})\n"
        "def other(): return nn.ModuleDict({'fc': nn.Linear(4, 4), 'fc2': nn.Linear(4, 4)})\n"
    )
    state = parse_arch(f"{tmp_path / 'net.py'}:build").build().state_dict()
    torch.save(state, tmp_path / "m.pt")
    loaded = load_model(tmp_path / "m.pt", arch=f"{tmp_path / 'net.py'}:build").state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    with pytest.raises(ArchitectureError):
        load_model(tmp_path / "m.pt", arch=f"{tmp_path / 'net.py'}:other")


def test_torchvisions_published_densenet(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision").models
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        new = models.DenseNet(growth_rate=8, block_config=(2, 2), num_init_features=16, num_classes=10).state_dict()
    old = {}
    for name, tensor in new.items():
        for part in ("norm1", "norm2", "conv1", "conv2"):
            if "denselayer" in name:
                name = name.replace(part, f"{part[:-1]}.{part[-1]}")
        old[name] = tensor
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "old.pth")
    arch = "torchvision:densenet121:num_classes=10,growth_rate=8"  # not this network: refused, whatever it is called
    with pytest.raises(ArchitectureError):
        scan(tmp_path / "old.pth", arch=arch)
    (tmp_path / "net.py").write_text(
        "from torchvision.models import DenseNet\n"
        "def build(): return DenseNet(growth_rate=8, block_config=(2, 2), num_init_features=16, num_classes=10)\n"
    )
    own = f"{tmp_path / 'net.py'}:build"
    repair(tmp_path / "old.pth", tmp_path / "out.pth", arch=own, method=LPP(upper=1), partial=True)
    out = torch.load(tmp_path / "out.pth", weights_only=True)
    assert list(out) == list(old)
    assert any(not torch.equal(out[name], old[name]) for name in old)
    model = load_model(tmp_path / "old.pth", arch=own).state_dict()
    assert all(torch.equal(model[name], new[name]) for name in new)


NETS = """
from torch import nn
from torch.nn.utils import parametrizations as new, spectral_norm, weight_norm

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32)
        self.c, self.d = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.d.weight = self.c.weight
        self.f = nn.Linear(32, 10)
    def forward(self, x):
        return self.f(self.d(self.c(self.b(self.a(x)).relu()).relu()).mean((2, 3)))

def tied(): return Tied()
def untied():
    net = Tied()
    net.d.weight = nn.Parameter(net.c.weight.clone())
    return net
def normed(f):
    first, second = f(nn.Conv1d(4, 32, 3)), f(nn.Conv1d(32, 32, 3))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Conv1d(32, 5, 1))
def weight_old(): return normed(weight_norm)
def weight_new(): return normed(new.weight_norm)
def weight_none(): return normed(lambda layer: layer)
def spectral_old(): return normed(spectral_norm)
def spectral_new(): return normed(new.spectral_norm)
"""


@pytest.fixture
def nets(tmp_path: Path) -> Callable[[str], str]:
    (tmp_path / "nets.py").write_text(NETS)
    return lambda name: f"{tmp_path / 'nets.py'}:{name}"


def test_a_tied_tensor_that_save_model_dropped(tmp_path: Path, nets: Callable[[str], str]) -> None:
    model = parse_arch(nets("tied")).build()
    model.state_dict()["a.weight"][3] *= 50
    safetensors.torch.save_model(model, str(tmp_path / "in.safetensors"))
    names = list(checkpoint.load(tmp_path / "in.safetensors").tensors)
    assert len(names) == len(model.state_dict()) - 1
    report = repair(tmp_path / "in.safetensors", tmp_path / "out.safetensors", arch=nets("tied"))
    assert (report.complete, report.pruned) == (True, 1)
    assert any(remark.kind == "tied tensors" for remark in report.left_alone)
    assert list(checkpoint.load(tmp_path / "out.safetensors").tensors) == names
    again = parse_arch(nets("tied")).build()
    safetensors.torch.load_model(again, tmp_path / "out.safetensors")
    ours = load_model(tmp_path / "out.safetensors", arch=nets("tied"))
    assert ours.get_submodule("c").weight is ours.get_submodule("d").weight
    assert all(torch.equal(again.state_dict()[n], t) for n, t in ours.state_dict().items())
    with pytest.raises(ArchitectureError, match="missing from the file: 1"):
        scan(tmp_path / "in.safetensors", arch=nets("untied"))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("file", "arch"),
    [
        ("weight_old", "weight_new"),
        ("weight_new", "weight_old"),
        ("weight_old", "weight_none"),
        ("weight_new", "weight_none"),
        ("weight_old", None),
        ("weight_new", None),
        ("spectral_old", "spectral_new"),
        ("spectral_new", "spectral_old"),
    ],
)
def test_norms_of_weights_either_way(tmp_path: Path, nets: Callable[[str], str], file: str, arch: str | None) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = parse_arch(nets(file)).build()
    state = model.state_dict()
    if file.startswith("weight"):
        state["0.weight_g" if file == "weight_old" else "0.parametrizations.weight.original0"][3] *= 50
    torch.save(state, tmp_path / "in.pt")
    x = torch.ones(1, 4, 20)
    named = None if arch is None else nets(arch)
    if named is not None:
        torch.testing.assert_close(load_model(tmp_path / "in.pt", arch=named)(x), model.eval()(x))
    if named is None:  # scored, and not edited: no name says that its rows are no answers
        report = scan(tmp_path / "in.pt")
        assert [(layer.path, layer.immutable) for layer in report.layers if layer.immutable] == [("0", (3,))]
        with pytest.raises(IncompleteError, match="role is not known"):
            repair(tmp_path / "in.pt", tmp_path / "out.pt", partial=True)
        return
    report = repair(tmp_path / "in.pt", tmp_path / "out.pt", arch=named, partial=True)
    out = torch.load(tmp_path / "out.pt", weights_only=True)
    assert list(out) == list(state)
    if file.startswith("spectral"):
        return
    assert [(layer.path, layer.pruned) for layer in report.layers if layer.pruned] == [("0", (3,))]
    model.load_state_dict(out)
    seen: list[Tensor] = []
    model[0].register_forward_hook(lambda _m, _i, y: seen.append(y))
    assert model(x).isfinite().all()
    assert not seen[0][:, 3].any()
    assert seen[0][:, 4].any()


@pytest.mark.parametrize("arch", ["plain", None])
@pytest.mark.parametrize("norm", [True, False])
def test_pruning_masks(tmp_path: Path, arch: str | None, norm: bool) -> None:
    from torch.nn.utils import prune

    line = (
        "nn.Sequential(nn.Conv2d(3, 32, 3), nn.{}, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))"
    )
    (tmp_path / "nets.py").write_text(
        f"from torch import nn\ndef plain(): return {line.format('BatchNorm2d(32)' if norm else 'Identity()')}\n"
    )
    named = f"{tmp_path / 'nets.py'}:plain"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = parse_arch(named).build()
        prune.l1_unstructured(model[0], "weight", 0.3)
        prune.l1_unstructured(model[0], "bias", 0.3)
        calibrate(model, torch.rand(16, 3, 8, 8))
    model.state_dict()["0.weight_orig"][3] *= 50
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert "0.weight_orig" in state
    torch.save(state, tmp_path / "in.pt")
    words = {"arch": named if arch else None, "method": LPP(band=0)}
    if arch is None and not norm:  # no norm whose statistics say that the layer is a hidden one
        with pytest.raises(IncompleteError, match="role is not known"):
            repair(tmp_path / "in.pt", tmp_path / "out.pt", partial=True, **words)
        return
    report = repair(tmp_path / "in.pt", tmp_path / "out.pt", partial=True, **words)
    assert [(layer.path, layer.pruned) for layer in report.layers] == [("0", (3,))]
    assert report.layers[0].scores[5] is not None
    weight = (state["0.weight_orig"] * state["0.weight_mask"])[5]
    if not norm:
        assert report.layers[0].scores[5] == pytest.approx(float(weight.norm()))
    assert any(remark.kind == "pruning mask" for remark in report.left_alone)
    out = torch.load(tmp_path / "out.pt", weights_only=True)
    assert list(out) == list(state)
    others = [n for n in range(32) if n != 3]
    for name in ("0.weight_orig", "0.weight_mask", "0.bias_orig", "0.bias_mask"):
        assert torch.equal(out[name][others], state[name][others])
    if norm:
        assert (out["1.weight"][3], out["1.bias"][3]) == (0, 0)
    else:
        assert not out["0.weight_orig"][3].any()
        assert not out["0.bias_orig"][3].any()
    if arch:
        loaded = load_model(tmp_path / "in.pt", arch=named)
        torch.testing.assert_close(loaded(torch.ones(1, 3, 8, 8)), model.eval()(torch.ones(1, 3, 8, 8)))


def test_a_mask_that_is_none(tmp_path: Path) -> None:
    """A tensor that is called a mask, and holds other numbers than 0 and 1, is not multiplied with."""
    state = {"0.weight_orig": torch.ones(4, 3, 1, 1), "0.weight_mask": torch.full((4, 3, 1, 1), 0.5)}
    torch.save(state, tmp_path / "m.pt")
    assert set(open_model(tmp_path / "m.pt").checkpoint.tensors) == set(state)


def test_vision_transformers_of_backdoorbench(tmp_path: Path) -> None:
    """`Sequential(Resize, net)`: every name begins with "1."."""
    arch = "vit_small"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = parse_arch(arch).build().state_dict()
    content = {
        "model_name": arch,
        "num_classes": 10,
        "model": {f"1.{name}": tensor.half() for name, tensor in state.items()},
        "clean_data": "cifar10",
    }
    torch.save(content, tmp_path / "attack_result.pt")
    file = open_model(tmp_path / "attack_result.pt")
    assert str(file.arch) == "vit_small:num_classes=10"
    assert file.checkpoint.tensors.keys() == state.keys()
    repair(tmp_path / "attack_result.pt", tmp_path / "out.pt", method=LPP(layers="all", upper=2), partial=True)
    out = torch.load(tmp_path / "out.pt", weights_only=True)["model"]
    assert list(out) == list(content["model"])
    assert {tensor.dtype for tensor in out.values()} == {torch.float16}


def test_unread_tensors_go_along_to_a_safetensors_file(state: dict[str, Tensor], tmp_path: Path) -> None:
    content = {**{"model." + name: tensor for name, tensor in state.items()}, "criterion.weight": torch.ones(10)}
    torch.save({"state_dict": content, "epoch": 3}, tmp_path / "in.ckpt")
    repair(tmp_path / "in.ckpt", tmp_path / "out.safetensors", arch=ARCH)
    repair(tmp_path / "in.ckpt", tmp_path / "out.ckpt", arch=ARCH)
    assert diff(tmp_path / "out.safetensors", tmp_path / "out.ckpt") == []
    assert checkpoint.read(tmp_path / "out.safetensors").at(()).keys() == content.keys()


def test_a_pickle_of_arrays(state: dict[str, Tensor], tmp_path: Path) -> None:
    (tmp_path / "np.pkl").write_bytes(pickle.dumps({name: tensor.numpy() for name, tensor in state.items()}))
    with pytest.raises(CheckpointError, match="a pickle of NumPy arrays that torch.save did not write; ask its author"):
        scan(tmp_path / "np.pkl")
