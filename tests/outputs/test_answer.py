"""Networks that return more than their logits: which part is meant, and what is said where none can be."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import unbackdoor as ub
from layer_zoo import same_state, snapshot
from unbackdoor.data import DATASETS, LabelledImages
from unbackdoor.defences.data_based.ft import FT
from unbackdoor.defences.data_based.nad import NAD
from unbackdoor.detectors import parse_detector
from unbackdoor.errors import ArchitectureError, MethodError
from unbackdoor.metrics import evaluate_model, predict
from unbackdoor.outputs import answering, described, logits_of, part_of

SPEC = DATASETS["cifar10"]


class Named(NamedTuple):
    logits: Any
    features: Any


@dataclasses.dataclass
class Record:
    logits: Any
    features: Any


#: How logits and features may come back -> what to say for the logits.
WRAPS: dict[str, tuple[Callable[[Any, Any], object], str]] = {
    "dict": (lambda logits, features: {"out": logits, "aux": features}, "out"),
    "ordered dict with numbers": (lambda logits, features: OrderedDict({0: features, 1: logits}), "1"),
    "tuple": (lambda logits, features: (features, logits), "1"),
    "list": (lambda logits, features: [logits, features], "0"),
    "named tuple": (Named, "logits"),
    "named tuple by number": (Named, "0"),
    "dataclass": (Record, "logits"),
}


class Wrapped(nn.Module):
    """A network whose logits come back inside something."""

    def __init__(self, wrap: Callable[[Any, Any], object]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.inner = nn.Sequential(
                *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2)),
                *(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
                *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)),
            )
        self.wrap = wrap

    def forward(self, x: Tensor) -> object:
        logits = self.inner(x)
        return self.wrap(logits, x.mean((2, 3)))


def images(count: int = 24, side: int = 32) -> LabelledImages:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    return LabelledImages(pixels, torch.arange(count) % 3, SPEC)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("name", WRAPS)
def test_each_kind_of_answer_is_evaluated_as_its_logits_are(name: str) -> None:
    wrap, output = WRAPS[name]
    model, data = Wrapped(wrap).eval(), images(12)
    before = snapshot(model)
    found = ub.evaluate(model, data=data, attack=ub.parse_attack("badnet"), output=output)
    assert found == ub.evaluate(model.inner, data=data, attack=ub.parse_attack("badnet"))
    assert snapshot(model) == before
    assert not model._forward_hooks
    with pytest.raises(ArchitectureError, match=r"name the part that is the logits with --output \(output=\.\.\.\)"):
        ub.evaluate(model, data=data)


def test_methods_and_detectors_work_on_the_part_that_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the same weights, and to the same findings, as on the network that returns the logits alone."""
    pytest.importorskip("sklearn")
    monkeypatch.setattr("unbackdoor.detectors.data_based.activation_clustering.FEW", 5)
    data, plain = images(side=16), Wrapped(lambda logits, _: logits).eval()
    wrapped = Wrapped(WRAPS["dict"][0]).eval()
    given = (data.images, data.labels)
    for method in (FT(epochs=1, batch_size=32), NAD(teacher_epochs=1, epochs=1, batch_size=32)):
        wanted = method(plain, *given, generator=generator(), spec=SPEC)
        found = method(wrapped, *given, generator=generator(), spec=SPEC, output="out")
        assert same_state(found.model, wanted.model)
        assert set(found.model(torch.zeros(1, 3, 32, 32))) == {"out", "aux"}
    for text in ("nc:steps=2,success=0.0", "ac"):
        detector = parse_detector(text)
        found, wanted = (
            detector(model, *given, generator=generator(), spec=SPEC, output=output)
            for model, output in ((wrapped, "out"), (plain, None))
        )
        assert found.to_json() == wanted.to_json()


def test_without_a_name_methods_and_detectors_say_what_there_is() -> None:
    data, wrapped = images(), Wrapped(WRAPS["dict"][0])
    for call in (FT(epochs=1), parse_detector("ac")):
        with pytest.raises(MethodError, match=r"got a dict of out \(2, 10\), aux \(2, 3\); name the part") as caught:
            call(wrapped, data.images, data.labels, generator=generator(), spec=SPEC)
        assert len(str(caught.value).splitlines()) == 1
        with pytest.raises(
            MethodError, match="--output nope: the output has no such part; the network returns a dict of out"
        ):
            call(wrapped, data.images, data.labels, generator=generator(), spec=SPEC, output="nope")


class TestTrouble:
    """What cannot be taken for logits."""

    @pytest.mark.parametrize(
        ("answer", "says"),
        [
            (
                torch.zeros(2, 21, 8, 8),
                r"a tensor \(2, 21, 8, 8\), a map or a sequence; only classifiers are supported",
            ),
            (torch.zeros(2), r"a tensor \(2,\)$"),
            (None, "got nothing$"),
            ("words", "got a str$"),
            ((), "got a tuple$"),
            ({str(i): torch.zeros(1) for i in range(40)}, r"11 \(1,\) and 28 more; name the part"),
            (({"out": torch.zeros(1)},), r"a tuple of 0 \(dict\)"),
            (Named(torch.zeros(2, 3), None), r"a Named of logits \(2, 3\), features \(NoneType\)"),
        ],
    )
    def test_what_came_is_said(self, answer: object, says: str) -> None:
        with pytest.raises(ArchitectureError, match=says) as caught:
            logits_of(answer)
        assert "expected a network that returns logits of shape (N, classes)" in str(caught.value)

    def test_a_name_that_is_not_there(self) -> None:
        with pytest.raises(ArchitectureError, match="returns one tensor; leave --output"):
            part_of(torch.zeros(2, 3), "out")
        for answer, output in (((1, 2), "2"), ((1, 2), "-1"), ({"a": 1}, "b"), (Record, "logits"), (3, "real")):
            with pytest.raises(ArchitectureError, match="has no such part"):
                part_of(answer, output)

    def test_a_map_behind_a_key_is_no_logits(self) -> None:
        class Segmenter(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(3, 10, 1)

            def forward(self, x: Tensor) -> dict[str, Tensor]:
                return {"out": self.conv(x)}

        with pytest.raises(ArchitectureError, match=r"got a tensor \(2, 10, 32, 32\), a map"):
            ub.evaluate(Segmenter(), data=images(4), output="out")
        pixels = images(4).images
        with pytest.raises(ArchitectureError, match=r"got a dict of out \(4, 10, 32, 32\)"):
            predict(Segmenter(), pixels, prepare=lambda x: x.float())
        with pytest.raises(ArchitectureError, match=r"got a tensor \(4, 10, 32, 32\)"):
            evaluate_model(Segmenter(), pixels, torch.zeros(4).long(), prepare=lambda x: x.float(), output="out")

    def test_the_hook_goes_even_where_the_network_fails(self) -> None:
        model = Wrapped(WRAPS["dict"][0])
        with pytest.raises(ArchitectureError), answering(model, "nope"):
            model(torch.zeros(1, 3, 32, 32))
        assert not model._forward_hooks

    def test_a_description_never_breaks_the_line(self) -> None:
        assert described({"out": torch.zeros(2, 3)}).startswith("a dict of out (2, 3)")
