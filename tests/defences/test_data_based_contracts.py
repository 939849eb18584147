"""What every data-based method promises, as a table: whoever registers one is tested by adding nothing."""

import copy
import dataclasses
import inspect
import json
import math
import re

import pytest
import torch
from torch import Tensor, nn

from layer_zoo import same_state, snapshot
from unbackdoor.data import DATASETS, normalise
from unbackdoor.defences.base import DEFENCES, Outcome
from unbackdoor.defences.data_based import DataBased
from unbackdoor.defences.table import parse_method, presets_of
from unbackdoor.errors import MethodError, SettingError
from unbackdoor.models import parse_arch
from unbackdoor.settings import settings_of

METHODS = {name: DEFENCES[name] for name in DEFENCES if DEFENCES[name].needs != "nothing"}
SPEC = DATASETS["cifar10"]
#: Every kind of network that the methods are for, as small as it can be.
NETWORKS = (
    "resnet18:width=4",
    "preactresnet18:width=4",
    "vgg19_bn:width=4",
    "mobilenetv2:width=4",
    "densenet121:growth=4",
    "timm:resnet18",
)
#: Methods that work on BatchNorm channels.
ON_NORMS = {"anp", "bnp", "ep", "rnp"}


def small(cls: type[DataBased]) -> DataBased:
    """As few and as small steps as a method can take."""
    counts = {f.name: 1 for f in dataclasses.fields(cls) if re.fullmatch(r".*(epochs|iterations|rounds)", f.name)}
    sizes = {f.name: 8 for f in dataclasses.fields(cls) if f.name == "batch_size"}
    return cls(**counts, **sizes)


def network(name: str = "resnet18:width=4") -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classes = {} if name.startswith("timm:") else {"num_classes": 10}
        model = parse_arch(name).with_options(**classes).build()
        if name.startswith("timm:"):
            model.reset_classifier(10)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):  # as after training
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.1)
                nn.init.normal_(module.running_mean, 0, 0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def images(count: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return pixels, torch.randint(0, 10, (count,), generator=generator)


def answered(model: nn.Module, pixels: Tensor) -> Tensor:
    """Labels that a network has right, as after training."""
    with torch.no_grad():
        found = copy.deepcopy(model).float().eval()(normalise(pixels, SPEC))
    return found.argmax(1) if isinstance(found, Tensor) else torch.zeros(len(pixels), dtype=torch.int64)


def repaired(method: DataBased, model: nn.Module, seed: int = 0, **more: object) -> Outcome:
    pixels, labels = images()
    if not isinstance(model, torch.jit.ScriptModule) and isinstance(model, nn.Module) and takes_colour(model):
        labels = answered(model, pixels)
    return method(model, pixels, labels, generator=torch.Generator().manual_seed(seed), spec=SPEC, **more)


def takes_colour(model: nn.Module) -> bool:
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    return first is not None and first.in_channels == 3


@pytest.fixture(params=METHODS)
def cls(request: pytest.FixtureRequest) -> type[DataBased]:
    return METHODS[request.param]


def test_all_rivals_are_registered() -> None:
    assert {"bnp", "ep", "ft", "fp", "anp", "nad", "ibau", "rnp"} <= set(METHODS)


def test_a_method_is_a_frozen_keyword_only_record(cls: type[DataBased]) -> None:
    method = cls()
    assert DEFENCES[cls.name] is cls
    assert hash(method) == hash(cls())
    for field in dataclasses.fields(cls):
        assert field.kw_only
        assert field.default is not dataclasses.MISSING
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(method, field.name, field.default)


def test_every_setting_is_described_once(cls: type[DataBased]) -> None:
    described = re.findall(r"^    (\w+): ", inspect.getdoc(cls).partition("Attributes:\n")[2], re.MULTILINE)
    assert described == [field.name for field in dataclasses.fields(cls)]
    assert all(about.meaning for about in settings_of(cls).values())


def test_what_is_said_to_be_our_own_choice_is_a_setting(cls: type[DataBased]) -> None:
    assert list(settings_of(cls)) == list(cls().settings())
    assert {name for name, about in settings_of(cls).items() if about.own} <= set(cls().settings())


def test_every_setting_is_checked(cls: type[DataBased]) -> None:
    for field in dataclasses.fields(cls):
        for wrong in (math.nan, "much", None, [], -1, 1 if isinstance(field.default, bool) else True):
            with pytest.raises(SettingError, match=rf"^{field.name}: expected .*, got ") as caught:
                cls(**{field.name: wrong})
            assert len(str(caught.value).splitlines()) == 1


def test_traits_are_told(cls: type[DataBased]) -> None:
    assert cls.needs in ("clean images", "training images")
    assert cls.title
    assert re.search(r"20\d\d", cls.source())
    assert cls.passes != "none"


def test_presets_are_methods_too(cls: type[DataBased]) -> None:
    for preset in presets_of(cls):
        assert isinstance(parse_method(cls.name, preset=preset), cls)
        assert parse_method(cls.name, preset=preset) != cls()


@pytest.mark.parametrize("name", NETWORKS)
def test_any_network_is_repaired_in_its_own_form(cls: type[DataBased], name: str) -> None:
    model = network(name)
    outcome = repaired(small(cls), model)
    assert type(outcome.model) is type(model)
    old, new = model.state_dict(), outcome.model.state_dict()
    assert list(new) == list(old)
    for key, tensor in old.items():
        assert (new[key].shape, new[key].dtype, new[key].device) == (tensor.shape, tensor.dtype, tensor.device)
        assert new[key].data_ptr() != tensor.data_ptr()
    assert torch.isfinite(outcome.model(torch.randn(2, 3, 32, 32))).all()
    assert outcome.report.complete
    assert outcome.report.layers or outcome.report.stages
    assert (cls.name in ON_NORMS) == bool(outcome.report.layers and outcome.report.layers[0].kind == "BatchNorm2d")


def test_the_network_is_never_changed(cls: type[DataBased]) -> None:
    model = network()
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    model.train()
    model.layer1.eval()
    model.conv1.weight.requires_grad_(False)
    (pixels, _), seen = images(), []
    labels = answered(model, pixels)
    handle = model.layer2.register_forward_hook(lambda *_: seen.append(1))
    before, random = snapshot(model), torch.get_rng_state()
    outcome = small(cls)(model, pixels, labels, generator=torch.Generator(), spec=SPEC)
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert seen == []  # an observer does not see the repair
    assert [m.training for m in outcome.model.modules()] == [m.training for m in model.modules()]
    assert [p.requires_grad for p in outcome.model.parameters()] == [p.requires_grad for p in model.parameters()]
    outcome.model.eval()(torch.randn(1, 3, 32, 32))
    assert seen == [1]  # but the repaired copy carries it, as any deep copy would
    handle.remove()


def test_after_an_exception_the_network_is_as_before(cls: type[DataBased]) -> None:
    model = network().train()
    before, random = snapshot(model), torch.get_rng_state()

    class Stopped(Exception):
        pass

    def stop(_done: int, _total: int, _note: str) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        repaired(small(cls), model, progress=stop)
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), random)


def test_the_same_seed_gives_the_same_network(cls: type[DataBased]) -> None:
    model = network()
    method = small(cls)
    first = repaired(method, model)
    torch.rand(7)  # whatever the global generator does
    second = repaired(method, model)
    assert same_state(first.model, second.model)
    assert first.report.to_json() == second.report.to_json()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_precision_is_kept(cls: type[DataBased], dtype: torch.dtype) -> None:
    outcome = repaired(small(cls), network().to(dtype))
    assert {p.dtype for p in outcome.model.parameters()} == {dtype}


def test_reports_hold_every_setting_the_images_and_only_finite_numbers(cls: type[DataBased]) -> None:
    report = repaired(small(cls), network()).report
    read = json.loads(report.to_json(), parse_constant=lambda word: pytest.fail(word))
    assert (read["method"], read["action"]) == (cls.name, "defend")
    assert set(read["settings"]) == {field.name for field in dataclasses.fields(cls)}
    assert read["data"]["images"] == 12
    assert len(read["data"]["digest"]) == 64
    assert read["data"]["digest"] in report.to_text().replace("\n", "").replace(" ", "")
    assert "<script" not in report.to_html()
    for stage in read["stages"]:
        assert len(stage["losses"]) == len(stage["accuracies"]) >= 1


def test_norm_methods_refuse_networks_without_norms(cls: type[DataBased]) -> None:
    model = network("vgg19:width=4")
    if cls.name in ON_NORMS:
        with pytest.raises(MethodError, match="works on BatchNorm channels, and this network has none"):
            repaired(small(cls), model)
    else:  # at a rate that a deep network without norms bears
        assert repaired(dataclasses.replace(small(cls), lr=1e-4), model).report.stages


def test_float_images_without_a_data_set(cls: type[DataBased]) -> None:
    generator = torch.Generator().manual_seed(0)
    model, x = network(), torch.randn(12, 3, 32, 32, generator=generator)
    outcome = small(cls)(model, x, model(x).argmax(1), generator=generator)
    assert outcome.report.data.name is None


def test_one_odd_image_more_than_a_batch(cls: type[DataBased]) -> None:
    """BatchNorm cannot train on one image: the odd one joins the batch before it."""
    model, (pixels, _) = network(), images(9)
    labels = answered(model, pixels)
    assert small(cls)(model, pixels, labels, generator=torch.Generator(), spec=SPEC).report.data.images == 9


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x, y: (x.float(), y), "images: expected uint8 of shape"),
        (lambda x, y: (x[:, :1], y), "images: expected uint8 of shape"),
        (lambda x, y: (x, y[:-1]), "labels: expected int64 of shape"),
        (lambda x, y: (x, y.int()), "labels: expected int64 of shape"),
        (lambda x, y: (x, y + 10), "labels: expected 0 to 9, the network's classes"),
        (lambda x, y: (x, y - 10), "labels: expected 0 to 9, the network's classes"),
        (lambda x, y: (x[:0], y[:0]), "expected at least one image"),
        (lambda x, y: (x.tolist(), y), "expected images and labels as tensors"),
    ],
)
def test_wrong_images_are_refused(cls: type[DataBased], change: object, says: str) -> None:
    with pytest.raises(SettingError, match=says) as caught:
        small(cls)(network(), *change(*images()), generator=torch.Generator(), spec=SPEC)
    assert str(caught.value).startswith(f"{cls.name}: ")


@pytest.mark.parametrize("wrong", [lambda x: x, lambda x: x.float().fill_(math.nan)])
def test_images_without_a_data_set_are_checked_too(cls: type[DataBased], wrong: object) -> None:
    pixels, labels = images()
    with pytest.raises(SettingError, match="images: expected"):
        small(cls)(network(), wrong(pixels), labels, generator=torch.Generator())


class Tuple(nn.Module):
    """Answers more than logits."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner(x), x


def test_networks_that_do_not_answer_logits_are_refused(cls: type[DataBased]) -> None:
    with pytest.raises(MethodError, match=r"expected a network that returns logits of shape \(N, classes\)"):
        repaired(small(cls), Tuple())
    with pytest.raises(MethodError, match=r"the network fails on images of shape \(3, 32, 32\)"):
        repaired(small(cls), nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Flatten()))


def test_torchscript_is_refused(cls: type[DataBased]) -> None:
    scripted = torch.jit.trace(network(), torch.randn(1, 3, 32, 32))
    with pytest.raises(MethodError, match="TorchScript"):
        repaired(small(cls), scripted)


class InTraining(nn.Module):
    """Answers an auxiliary head's logits too while it is trained, as GoogLeNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: Tensor) -> object:
        return (self.inner(x), self.inner(x)) if self.training else self.inner(x)


def test_a_network_that_answers_more_in_training(cls: type[DataBased]) -> None:
    assert repaired(small(cls), InTraining()).report.data.images == 12


def test_the_callers_gradients_and_modes_do_not_reach_in(cls: type[DataBased]) -> None:
    model, generator = network(), torch.Generator()
    x = torch.randn(12, 3, 32, 32).requires_grad_()
    y = model(x).argmax(1)
    method = small(cls)
    first = method(model, x, y, generator=generator.manual_seed(0))
    assert x.grad is None
    with torch.no_grad():
        second = method(model, x, y, generator=generator.manual_seed(0))
    with torch.inference_mode():
        third = method(model, x.clone(), y.clone(), generator=generator.manual_seed(0))
    assert same_state(first.model, second.model)
    assert same_state(first.model, third.model)
    assert torch.is_grad_enabled()


def test_strided_labels_and_another_default_dtype(cls: type[DataBased]) -> None:
    pixels, model = images()[0], network()
    strided = torch.stack([answered(model, pixels)] * 2, dim=1)[:, 0]
    torch.set_default_dtype(torch.float64)
    try:
        other = small(cls)(model, pixels, strided, generator=torch.Generator().manual_seed(0), spec=SPEC)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in other.model.parameters()} == {torch.float32}


def test_double_precision_is_not_rounded(cls: type[DataBased]) -> None:
    """What a method leaves alone is left bit for bit."""
    model = network().double()
    with torch.no_grad():
        model.fc.bias.add_(1e-12)
    outcome = repaired(small(cls), model)
    if cls.name in ON_NORMS:
        assert torch.equal(outcome.model.fc.bias, model.fc.bias)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: nn.DataParallel(network()), "give its .module"),
        (lambda: nn.Sequential(nn.Flatten()), "expected a network with weights"),
        (lambda: torch.ao.quantization.quantize_dynamic(network(), {nn.Linear}), "is no tensor"),
    ],
)
def test_networks_that_cannot_be_trained_are_refused(cls: type[DataBased], model: object, says: str) -> None:
    with pytest.raises(MethodError, match=says):
        small(cls)(model(), *images(), generator=torch.Generator(), spec=SPEC)


def test_a_generator_is_asked_for(cls: type[DataBased]) -> None:
    with pytest.raises(SettingError, match="generator: expected a torch.Generator on the CPU"):
        small(cls)(network(), *images(), generator=0, spec=SPEC)
    with pytest.raises(SettingError, match="spec: expected a data set's spec"):
        small(cls)(network(), *images(), generator=torch.Generator(), spec="cifar10")


class Shared(nn.Module):
    """Two norms with one weight, one called by keyword, and one whose tensors are used without it."""

    def __init__(self, *, shared: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=4)
        self.one, self.two, self.three = (nn.BatchNorm2d(6) for _ in range(3))
        if shared:
            self.two.weight = self.one.weight
        self.fc = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(input=torch.relu(self.one(self.conv(x))))
        three = self.three
        x = nn.functional.batch_norm(x, three.running_mean, three.running_var, three.weight, three.bias, self.training)
        return self.fc(torch.relu(x).mean((2, 3)))


def test_norms_that_are_shared_or_called_otherwise(cls: type[DataBased]) -> None:
    if cls.name not in ON_NORMS:
        return
    with pytest.raises(MethodError, match="is shared by several"):
        repaired(small(cls), Shared(shared=True).eval())
    report = repaired(small(cls), Shared(shared=False).eval()).report
    if cls.name in ("bnp", "ep"):
        assert {layer.path for layer in report.layers} == {"one", "two"}
        assert [remark.path for remark in report.not_covered] == ["three"]
        assert report.gap is not None
