"""A real backdoored network and real images, inside the package: before, after LPP, after CLP.

README.md beside this file says where they come from and how to make them again.
"""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from unbackdoor.api import load_model
from unbackdoor.attacks import Attack, read_attack
from unbackdoor.data import DATASETS, LabelledImages, normalise
from unbackdoor.defences.data_free import CLP, LPP
from unbackdoor.findings import Evaluation, Rate, Report, effectiveness
from unbackdoor.metrics import measure, predict
from unbackdoor.report import figures

_FILES = resources.files(__name__)


@dataclass(frozen=True)
class Contender:
    """The original network, or what a method made of it.

    Attributes:
        name: "original", "LPP" or "CLP".
        model: the network.
        result: on the demo's images.
        report: of the method; None for the original.
        seconds: the whole call: tracing, scoring, deciding, copying, pruning, reporting; None likewise.
    """

    name: str
    model: nn.Module
    result: Evaluation
    report: Report | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Demo:
    """What the demo found.

    Attributes:
        images: the test images.
        attack: the backdoor.
        contenders: the original, LPP, CLP.
        record: of the network's training, with its rates on the whole test set.
    """

    images: LabelledImages
    attack: Attack
    contenders: tuple[Contender, ...]
    record: dict[str, Any]


def run(progress: Callable[[int, int], None] | None = None) -> Demo:
    """Repair the packaged network by LPP and by CLP, both with their defaults, and measure all three.

    Args:
        progress: called with (evaluations done, evaluations in all).
    """
    images, attack, model = load()
    record = json.loads(_FILES.joinpath("record.json").read_text(encoding="utf-8"))
    total = 3

    def done(count: int) -> None:
        if progress is not None:
            progress(count, total)

    contenders = [Contender("original", model, measure(model, images, attack))]
    done(1)
    for method in (LPP(), CLP()):
        started = time.perf_counter()
        outcome = method(model)
        seconds = time.perf_counter() - started
        result = measure(outcome.model, images, attack)
        contenders.append(Contender(method.name.upper(), outcome.model, result, outcome.report, seconds))
        done(len(contenders))
    return Demo(images, attack, tuple(contenders), record)


def load() -> tuple[LabelledImages, Attack, nn.Module]:
    """The packaged images, attack and network (in float32)."""
    with resources.as_file(_FILES.joinpath("images.npz")) as path, np.load(path, allow_pickle=False) as arrays:
        pixels, labels = arrays["images"], arrays["labels"]
    images = LabelledImages(
        torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
        torch.from_numpy(labels.astype(np.int64)),
        DATASETS["cifar10"],
    )
    attack = read_attack(json.loads(_FILES.joinpath("attack.json").read_text(encoding="utf-8")))
    with resources.as_file(_FILES.joinpath("model.safetensors")) as path:
        model = load_model(path).float()
    return images, attack, model


def table(demo: Demo) -> str:
    """Rates and what was pruned, for a terminal."""
    lines = [f"{'':12} {'ACC':>8} {'ASR':>8} {'RA':>8} {'DER':>6}   pruned  shrunk  classifier weights  seconds"]
    for one in demo.contenders:
        rates = " ".join(f"{_percent(rate):>8}" for rate in _rates(one.result))
        line = f"{one.name:12} {rates}"
        if one.report is not None:
            cut = len(one.report.classifier.cut) if one.report.classifier else 0
            der = effectiveness(demo.contenders[0].result, one.result)
            line += f" {'-' if der is None else f'{der:.3f}':>6}"
            line += f"   {one.report.pruned:6}  {one.report.scaled:6}  {cut:18}  {one.seconds:7.3f}"
        lines.append(line)
    return "\n".join(lines)


def page(demo: Demo) -> str:
    """The page: rates, pictures with the networks' answers, and the reports of LPP and CLP."""
    from unbackdoor.report.html import View
    from unbackdoor.report.pages import page as complete

    spec, count, whole = demo.images.spec, len(demo.images), demo.record["result"]
    measured = (
        f"Measured on {count} test images ({count // spec.num_classes} of each class) that come with the package. On "
        f"the whole test set, the original network has ACC {whole['acc']['value']:.2%} and ASR "
        f"{whole['asr']['value']:.2%}."
    )
    repairs = [
        {"name": one.name, "words": _words(one), "report": View(one.report, prefix=one.name.lower(), level=3)}
        for one in demo.contenders
        if one.report is not None
    ]
    return complete(
        "demo.html",
        package=__name__,
        title="Demo",
        heading="A backdoor, and its repair",
        record=demo.record,
        data=spec.title,
        measured=measured,
        rates=_rates_table(demo),
        gallery=_gallery(demo),
        repairs=repairs,
    )


def _rates_table(demo: Demo) -> figures.Rates:
    meanings: tuple[tuple[str, str, Literal["higher", "lower"]], ...] = (
        ("ACC", "clean images given their true class", "higher"),
        ("ASR", "triggered images given the attacker's class", "lower"),
        ("RA", "triggered images given their true class", "higher"),
    )
    return figures.Rates(
        columns=[figures.Column(name=name, meaning=meaning, better=better) for name, meaning, better in meanings],
        rows=[figures.Row(name=x.name, detail=_detail(x), counts=_counts(x.result)) for x in demo.contenders],
        caption="Default settings",
    )


def _gallery(demo: Demo) -> figures.Gallery:
    images, classes = demo.images, demo.images.spec.classes
    before = _answers(demo.contenders[0].model, images.images, images)
    stamped = demo.attack.stamp(images.images)
    found = []
    for label in range(len(classes)):
        right = ((images.labels == label) & (before == label)).nonzero().flatten().tolist()
        if label == demo.attack.target or not right:
            continue
        views = (("without the trigger", images.images[right[0]]), ("with the trigger", stamped[right[0]]))
        pictures = tuple(_picture(demo, caption, view) for caption, view in views)
        found.append(figures.Example(truth=classes[label], pictures=pictures))
    models = tuple(one.name for one in demo.contenders)
    return figures.Gallery(examples=found, models=models, target=classes[demo.attack.target])


def _picture(demo: Demo, caption: str, view: Tensor) -> figures.Picture:
    labels = [int(_answers(one.model, view[None], demo.images)[0]) for one in demo.contenders]
    answers = tuple(demo.images.spec.classes[label] for label in labels)
    return figures.Picture(image=_data_uri(view), caption=caption, answers=answers)


def _answers(model: nn.Module, images: Tensor, like: LabelledImages) -> Tensor:
    return predict(model, images, prepare=lambda batch: normalise(batch, like.spec))


def _data_uri(image: Tensor) -> str:
    """(3, H, W) uint8 as a PNG in a data URI."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _rates(result: Evaluation) -> Sequence[Rate | None]:
    return (result.acc, result.asr, result.ra)


def _counts(result: Evaluation) -> tuple[tuple[int, int] | None, ...]:
    return tuple(None if rate is None else (rate.hits, rate.total) for rate in _rates(result))


def _percent(rate: Rate | None) -> str:
    return "-" if rate is None or rate.value is None else f"{rate.value:.2%}"


def _detail(one: Contender) -> str:
    return "" if one.report is None else f"{one.report.pruned} pruned, {one.report.scaled} shrunk"


def _words(one: Contender) -> str:
    assert one.report is not None
    assert one.seconds is not None
    shrunk = f" and shrank {one.report.scaled}" if one.report.scaled else ""
    text = (
        f"{one.name} scored {one.report.channels:,} channels in {len(one.report.layers)} layers, pruned "
        f"{one.report.pruned}{shrunk}, in {one.seconds:.3f} seconds on this machine."
    )
    if one.report.classifier is not None:
        guess = one.report.classifier.guessed_class
        text += f" It guessed from the classifier's weights that the attacker's class is {guess}."
    return text
