"""What every data-free method that reads weights alone promises, as a table: whoever registers one is tested by adding
nothing."""

import dataclasses
import inspect
import json
import math
import re

import pytest
import torch
from torch import Tensor, nn

import unbackdoor.defences.data_free  # registers the methods
from layer_zoo import Net, bits, filters_of, inputs, network, randomise, same_state, snapshot
from unbackdoor.defences.base import DEFENCES, Defence, Outcome
from unbackdoor.errors import PlanError, SettingError
from unbackdoor.graph import layer_graph
from unbackdoor.models.preact_resnet import preactresnet18
from unbackdoor.models.resnet import resnet18
from unbackdoor.models.vgg import vgg19, vgg19_bn
from unbackdoor.settings import settings_of

assert unbackdoor.defences.data_free

METHODS = {
    name: DEFENCES[name]
    for name in DEFENCES
    if DEFENCES[name].needs == "nothing" and not DEFENCES[name].needs_gradients
}


def with_outliers(model: nn.Module) -> nn.Module:
    """Norms as after training, and in every layer a channel that stands out."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                randomise(module)
            elif isinstance(module, nn.Conv2d):
                module.weight[1] *= 20
    return model.eval()


def build(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name in NETWORKS:
            return with_outliers(NETWORKS[name](width=8))
    return network(name)


NETWORKS = {"resnet18": resnet18, "preactresnet18": preactresnet18, "vgg19_bn": vgg19_bn, "vgg19": vgg19}
MODELS = [*NETWORKS, "conv1d", "depthwise", "transposed grouped", "weight_norm", "spectral_norm", "older spectral_norm"]


def example(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 3, 32, 32, generator=generator) if name in NETWORKS else inputs(name)


@pytest.fixture(params=METHODS)
def cls(request: pytest.FixtureRequest) -> type[Defence]:
    return METHODS[request.param]


def test_something_is_registered() -> None:
    assert {"lpp", "clp"} <= set(METHODS)


def test_a_method_is_a_frozen_keyword_only_record(cls: type[Defence]) -> None:
    method = cls()
    assert DEFENCES[cls.name] is cls
    assert method == cls()
    assert hash(method) == hash(cls())
    for field in dataclasses.fields(cls):
        assert field.kw_only
        assert field.default is not dataclasses.MISSING
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(method, field.name, field.default)


def test_every_setting_is_described_once(cls: type[Defence]) -> None:
    described = re.findall(r"^    (\w+): ", inspect.getdoc(cls).partition("Attributes:\n")[2], re.MULTILINE)
    assert described == [field.name for field in dataclasses.fields(cls)]
    assert all(about.meaning for about in settings_of(cls).values())


def test_what_is_said_to_be_our_own_choice_is_a_setting(cls: type[Defence]) -> None:
    assert list(settings_of(cls)) == list(cls().settings())
    assert {name for name, about in settings_of(cls).items() if about.own} <= set(cls().settings())


def test_every_setting_is_checked(cls: type[Defence]) -> None:
    """A value of a wrong type, or NaN, never gets through."""
    for field in dataclasses.fields(cls):
        for wrong in (math.nan, "much", None, [], {}, torch.ones(2), b"1"):
            with pytest.raises(SettingError, match=rf"^{field.name}: expected .*, got ") as caught:
                cls(**{field.name: wrong})
            assert len(str(caught.value).splitlines()) == 1
        if not isinstance(field.default, bool):
            for wrong in (True, False):
                with pytest.raises(SettingError, match=field.name):
                    cls(**{field.name: wrong})
        else:
            with pytest.raises(SettingError, match=field.name):
                cls(**{field.name: 1})


@pytest.mark.parametrize("name", MODELS)
def test_the_network_is_never_changed(cls: type[Defence], name: str) -> None:
    model = build(name)
    model(example(name)).sum().backward()
    model.train()  # whatever mode each module is in comes back
    next(iter(model.children())).eval()
    next(model.parameters()).requires_grad_(False)
    handle = model.register_forward_hook(lambda *_: None)
    before = snapshot(model)
    outcome = cls()(model)
    assert snapshot(model) == before
    modes = [module.training for module in model.modules()]
    assert [module.training for module in outcome.model.modules()] == modes
    assert [p.requires_grad for p in outcome.model.parameters()] == [p.requires_grad for p in model.parameters()]
    handle.remove()


@pytest.mark.parametrize("name", MODELS)
def test_the_repaired_network_has_the_same_form(cls: type[Defence], name: str) -> None:
    model = build(name)
    outcome = cls()(model)
    assert isinstance(outcome, Outcome)
    assert type(outcome.model) is type(model)
    old, new = model.state_dict(), outcome.model.state_dict()
    assert list(new) == list(old)
    for key, tensor in old.items():
        assert (new[key].shape, new[key].dtype, new[key].device) == (tensor.shape, tensor.dtype, tensor.device)
        assert new[key].data_ptr() != tensor.data_ptr()
    assert torch.isfinite(outcome.model(example(name))).all()
    type(model).load_state_dict(model, new)


@pytest.mark.parametrize("name", NETWORKS)
def test_outliers_are_found_and_their_channels_switched_off(cls: type[Defence], name: str) -> None:
    model = build(name)
    outcome = cls()(model)
    if outcome.report.pruned == 0:  # CLP's sample deviations do not reach 3 among eight
        assert all("no score can" in " ".join(layer.notes) for layer in outcome.report.layers if len(layer.scores) < 10)
    modules = dict(outcome.model.named_modules())
    out: dict[str, Tensor] = {}
    for layer in outcome.report.layers:
        at = layer.norm or layer.path
        modules[at].register_forward_hook(lambda _m, _i, result, at=at: out.__setitem__(at, result.detach()))
    outcome.model(example(name))
    for layer in outcome.report.layers:
        zero = [channel for channel in range(len(layer.scores)) if not out[layer.norm or layer.path][:, channel].any()]
        assert set(layer.pruned) <= set(zero)
    assert outcome.report.pruned > 0


@pytest.mark.parametrize("name", MODELS)
def test_the_result_is_always_the_same(cls: type[Defence], name: str) -> None:
    model = build(name)
    first, second = cls()(model), cls()(build(name))
    assert same_state(first.model, second.model)
    assert first.report.to_json() == second.report.to_json()
    graph = layer_graph(model)
    assert cls()(model, graph=graph).report.to_json() == first.report.to_json()


@pytest.mark.parametrize("name", MODELS)
def test_plan_apply_and_undo(cls: type[Defence], name: str) -> None:
    model = build(name)
    plan = cls().plan(model)
    before = {key: bits(tensor) for key, tensor in model.state_dict().items()}
    plan.apply_(model)
    assert same_state(model, cls()(build(name)).model)
    if plan.edits:
        with pytest.raises(PlanError):
            plan.apply_(model)
    plan.undo(model)
    assert {key: bits(tensor) for key, tensor in model.state_dict().items()} == before


@pytest.mark.parametrize("name", MODELS)
def test_reports_hold_every_setting_and_only_finite_numbers(cls: type[Defence], name: str) -> None:
    report = cls()(build(name)).report
    read = json.loads(report.to_json(), parse_constant=lambda word: pytest.fail(word))
    assert read["method"] == cls.name
    assert read["action"] == "repair"
    assert set(read["settings"]) == {field.name for field in dataclasses.fields(cls)}
    scored = {layer["path"] for layer in read["layers"]}
    said = {remark["path"] for key in ("not_covered", "left_alone") for remark in read[key]}
    assert {layer.path for layer in layer_graph(build(name)).layers} <= scored | said
    assert cls().plan(build(name)).report().action == "plan"


def test_plain_tensors_with_a_graph_do(cls: type[Defence]) -> None:
    model = build("resnet18")
    plan = cls().plan(model.state_dict(), graph=layer_graph(model))
    assert plan.report().to_json() == cls().plan(model).report().to_json()


def test_plain_tensors_without_a_graph_do_not(cls: type[Defence]) -> None:
    with pytest.raises(SettingError, match="give graph="):
        cls().plan(build("resnet18").state_dict())


def test_the_graph_of_another_network_is_refused(cls: type[Defence]) -> None:
    with pytest.raises(SettingError, match="give the graph of this network"):
        cls()(build("resnet18"), graph=layer_graph(build("vgg19")))


class Uncopyable(Net):
    """Fails when it is copied, after it was read."""

    def __deepcopy__(self, memo: object) -> object:
        raise RuntimeError("cannot be copied")


@pytest.mark.parametrize("name", ["conv2d", "older weight_norm", "older spectral_norm"])
def test_after_an_exception_the_network_is_as_before(cls: type[Defence], name: str) -> None:
    model = network(name)
    model.__class__ = Uncopyable
    model.train()
    model(inputs(name)).sum().backward()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="cannot be copied"):
        cls()(model)
    assert snapshot(model) == before


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["layer.weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"])
@pytest.mark.parametrize("kind", ["conv2d", "depthwise", "transposed grouped"])
def test_a_broken_channel_is_reported_and_mended(cls: type[Defence], kind: str, name: str, value: float) -> None:
    model = network(kind)
    with torch.no_grad():
        target = filters_of(model.layer)[3] if name == "layer.weight" else model.state_dict()[name]
        (target if name == "layer.weight" else target[3]).fill_(value)
    outcome = cls()(model)
    (layer,) = outcome.report.layers
    harmless = name == "norm.running_var" and value == math.inf
    assert layer.not_finite == (() if harmless else (3,))
    assert torch.isfinite(outcome.model(inputs(kind))).all()
    assert "NaN" not in outcome.report.to_json()
    assert "Infinity" not in outcome.report.to_json()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_precision_is_kept(cls: type[Defence], dtype: torch.dtype) -> None:
    model = build("resnet18").to(dtype)
    outcome = cls()(model)
    assert {p.dtype for p in outcome.model.parameters()} == {dtype}
    assert [layer.pruned for layer in outcome.report.layers] == [
        layer.pruned for layer in cls()(build("resnet18").to(dtype).float()).report.layers
    ]


def test_a_network_without_layers_is_copied_as_it_is(cls: type[Defence]) -> None:
    outcome = cls()(nn.Sequential(nn.ReLU()))
    assert outcome.report.layers == ()
    assert not outcome.report.complete  # no layer was scored, so it speaks for none
