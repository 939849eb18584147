"""The list of public names, and the examples with which they are introduced to users."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import unbackdoor as ub
from unbackdoor import checkpoint, demo
from unbackdoor.errors import (
    ArchitectureError,
    CheckpointError,
    DamageError,
    DataError,
    GraphError,
    IncompleteError,
    InputError,
    OutputError,
    PlanError,
    SettingError,
)

Build = Callable[..., nn.Module]

NAMES = [
    "ATTACKS",
    "CLP",
    "LPP",
    "LayerGraph",
    "Outcome",
    "Plan",
    "Report",
    "UnbackdoorError",
    "best",
    "channel_lipschitz",
    "defend",
    "detect",
    "evaluate",
    "layer_graph",
    "load",
    "load_model",
    "parse_attack",
    "parse_method",
    "predict_damage",
    "repair",
    "save",
    "scan",
    "witness",
]


def test_the_names() -> None:
    assert ub.__all__ == sorted(ub.__all__) == NAMES
    assert dir(ub) == NAMES
    assert sorted(ub._HOME) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_what_its_module_defines(name: str) -> None:
    home = importlib.import_module(f"unbackdoor.{ub._HOME[name]}")
    assert getattr(ub, name) is getattr(home, name)
    assert getattr(ub, name).__doc__
    if getattr(home, "__all__", None) is not None:
        assert name in home.__all__


def test_a_star_import_brings_them_all() -> None:
    names: dict[str, object] = {}
    exec("from unbackdoor import *", names)
    assert set(NAMES) <= set(names)


def test_another_name_is_an_error() -> None:
    with pytest.raises(AttributeError, match="module 'unbackdoor' has no attribute 'lpp'"):
        ub.lpp  # noqa: B018


def test_importing_is_cheap() -> None:
    """Neither torch nor anything else outside the standard library is loaded before a name is used."""
    code = (
        "import sys; before = set(sys.modules); import unbackdoor; new = set(sys.modules) - before\n"
        "own = {name.partition('.')[0] for name in new} - set(sys.stdlib_module_names)\n"
        "print(sorted(own))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['unbackdoor']\n"


@pytest.mark.parametrize(
    "error",
    [
        InputError,
        CheckpointError,
        ArchitectureError,
        DataError,
        SettingError,
        GraphError,
        PlanError,
        IncompleteError,
        DamageError,
        OutputError,
    ],
)
def test_every_error_derives_from_one(error: type[Exception]) -> None:
    assert issubclass(error, ub.UnbackdoorError)


def test_layers_and_scores(tiny_net: Build) -> None:
    model = tiny_net()
    graph = ub.layer_graph(model)
    assert isinstance(graph, ub.LayerGraph)
    layer = graph.layers[0]
    assert (layer.path, layer.kind, layer.out_channels, layer.norm, layer.rule) == ("conv1", "Conv2d", 4, "bn1", "fx")
    assert graph.unpaired_norms == ()
    scores = ub.channel_lipschitz(model)
    assert set(scores) == {"conv1", "conv2", "fc"}
    assert scores["conv1"].shape == (4,)
    spectral = ub.channel_lipschitz(model, norm="spectral")
    assert bool((spectral["conv1"] <= scores["conv1"] * (1 + 1e-6)).all())


def test_a_method_gives_a_repaired_copy(tiny_net: Build) -> None:
    model = tiny_net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    outcome = ub.LPP(upper=1.2)(model)
    assert isinstance(outcome, ub.Outcome)
    assert type(outcome.model) is type(model)
    assert outcome.model is not model
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    after = outcome.model.state_dict()
    assert {name: (t.shape, t.dtype) for name, t in after.items()} == {n: (t.shape, t.dtype) for n, t in before.items()}
    assert isinstance(outcome.report, ub.Report)
    assert outcome.report.pruned > 0
    assert json.loads(outcome.report.to_json()) == outcome.report.to_dict()
    assert outcome.report.to_html().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    "method", [ub.LPP(upper=1.2), ub.LPP.as_printed(), ub.LPP.either_norm(), ub.CLP(u=1.2), ub.CLP.as_published()]
)
def test_a_plan_is_looked_at_applied_and_undone(tiny_net: Build, method: ub.LPP | ub.CLP) -> None:
    model = tiny_net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = method.plan(model, graph=ub.layer_graph(model))
    assert isinstance(plan, ub.Plan)
    assert plan.report().action == "plan"
    plan.apply_(model)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {edit.name for edit in plan.edits}
    plan.undo(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_scan_and_repair_a_file(tiny_net: Build, tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision").models
    ub.save(tmp_path / "model.safetensors", models.resnet18(num_classes=5).state_dict())
    report = ub.scan(tmp_path / "model.safetensors", arch="torchvision:resnet18:num_classes=5")
    assert (report.action, report.complete, len(report.layers)) == ("scan", True, 20)
    ub.save(tmp_path / "model.pt", tiny_net().state_dict())
    report = ub.repair(tmp_path / "model.pt", tmp_path / "clean.safetensors", method=ub.LPP(upper=1.2))
    assert report.output == str(tmp_path / "clean.safetensors")
    assert ub.load(tmp_path / "clean.safetensors").tensors.keys() == tiny_net().state_dict().keys()


def test_evaluate_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    images, attack, model = demo.load()
    few = type(images)(images.images[::25], images.labels[::25], images.spec)
    monkeypatch.setattr("unbackdoor.data.load_dataset", lambda *_, **__: few)
    result = ub.evaluate(model, data="cifar10", attack=attack)
    others = int((few.labels != attack.target).sum())
    assert (result.acc.total, result.asr.total, result.ra.total) == (20, others, others)
    assert "badnet" in ub.ATTACKS
    assert ub.evaluate(model, data="cifar10", attack=ub.parse_attack("badnet")).acc == result.acc
    checkpoint.save(tmp_path / "m.safetensors", model.state_dict())
    loaded = ub.load_model(tmp_path / "m.safetensors", arch="resnet18:width=16")
    assert ub.evaluate(loaded, data="cifar10", attack=attack) == result
