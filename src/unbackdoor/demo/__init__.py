"""A real backdoored network and real images, inside the package: before, and after LPP, CLP and best.

The network is one that LPP does not repair.

README.md beside this file says where they come from and how to make them again.
"""

from __future__ import annotations

import base64
import io
import json
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import accumulate
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from unbackdoor.api import load_model
from unbackdoor.attacks import Attack, load_attack
from unbackdoor.data import DATASETS, LabelledImages, normalise
from unbackdoor.defences.base import Defence
from unbackdoor.defences.data_free import CLP, LPP, Best
from unbackdoor.defender.case import Progress, part, silent
from unbackdoor.findings import Evaluation, Rate, Report, effectiveness
from unbackdoor.metrics import measure, predict
from unbackdoor.report import figures, summary

_FILES = resources.files(__name__)
#: What the demo shows, all with their defaults.
METHODS: tuple[Defence, ...] = (LPP(), CLP(), Best())
#: Up to this ASR, a backdoor counts as removed.
REMOVED = 0.1
#: How much longer a method takes that runs the network, for the progress alone.
_LONG = 40


@dataclass(frozen=True)
class Contender:
    """The original network, or what a method made of it.

    Attributes:
        name: "original", "LPP", "CLP" or "best".
        model: the network.
        result: on the demo's images.
        report: of the method; None for the original.
        seconds: the whole call, from reading the network to the report, by the clock; None likewise.
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
        contenders: the original, and what each method made of it.
        record: of the network's training, with its rates on the whole test set.
    """

    images: LabelledImages
    attack: Attack
    contenders: tuple[Contender, ...]
    record: dict[str, Any]


def run(methods: Sequence[Defence] = METHODS, progress: Progress = silent) -> Demo:
    """Repair the packaged network by each method, with the random seed 0, and measure what comes of it.

    Args:
        methods: that need no data.
        progress: called with (steps done, steps in all, a note).
    """
    images, attack, model = load()
    record = json.loads(_FILES.joinpath("record.json").read_text(encoding="utf-8"))
    contenders = [Contender("original", model, measure(model, images, attack))]
    ends = list(accumulate((_LONG if method.runs else 1 for method in methods), initial=1))
    for method, start, end in zip(methods, ends, ends[1:], strict=False):
        told = part(progress, start / ends[-1], end / ends[-1])
        told(0, 1, method.name)
        generator = torch.Generator().manual_seed(0)
        started = time.perf_counter()
        outcome = method(model, spec=images.spec, generator=generator, progress=told)
        seconds = time.perf_counter() - started
        result = measure(outcome.model, images, attack)
        contenders.append(Contender(_named(method), outcome.model, result, outcome.report, seconds))
        told(1, 1, method.name)
    return Demo(images, attack, tuple(contenders), record)


def load() -> tuple[LabelledImages, Attack, nn.Module]:
    """The packaged images, attack and network (in float32)."""
    with resources.as_file(_FILES) as folder:
        with np.load(folder / "images.npz", allow_pickle=False) as arrays:
            pixels, labels = arrays["images"], arrays["labels"]
        attack, model = load_attack(folder / "attack.json"), load_model(folder / "model.safetensors").float()
    images = LabelledImages(
        torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
        torch.from_numpy(labels.astype(np.int64)),
        DATASETS["cifar10"],
    )
    return images, attack, model


def table(demo: Demo) -> str:
    """Rates, what was pruned where channels were scored, and the seconds, for a terminal."""
    names = " ".join(f"{name:>8}" for name in ("ACC", "ASR", "RA", "recall"))
    lines = [f"{'':12} {names} {'DER':>6}   pruned  shrunk  classifier weights  seconds"]
    for one in demo.contenders:
        rates = " ".join(f"{_percent(rate):>8}" for rate in _rates(one.result))
        line = f"{one.name:12} {rates}"
        if one.report is not None:
            der = effectiveness(demo.contenders[0].result, one.result)
            line += f" {'-' if der is None else f'{der:.3f}':>6}"
            scored, step = bool(one.report.layers), one.report.classifier
            counts = (
                one.report.pruned if scored else "-",
                one.report.scaled if scored else "-",
                len(step.cut) if step else "-",
            )
            line += "   {:>6}  {:>6}  {:>18}".format(*counts) + f"  {one.seconds:7.2f}"
        lines.append(line)
    return "\n".join(lines)


def findings(demo: Demo) -> str:
    """Which class each method took for the attacker's, and the story of each that tells one, for a terminal."""
    target, lines = demo.attack.target, []
    for one in demo.contenders:
        if one.report is None:
            continue
        if one.report.classifier is not None:
            guess = one.report.classifier.guessed_class
            lines.append(f"{one.name} guessed the attacker's class: {guess} (it is {target})")
        if one.report.suspects:
            named = ", ".join(map(str, one.report.suspects))
            lines.append(f"{one.name} suspected class {named} (the attacker's is {target}), and this is what it did:")
        if one.report.doubtful is not None:
            lines.append(
                f"{one.name} suspected no class, and closed class {one.report.doubtful}, which stood out most (the "
                f"attacker's is {target}):"
            )
        for told in one.report.story:
            lines += textwrap.wrap(told, 100, initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join(lines)


def page(demo: Demo) -> str:
    """The page: rates, pictures with the networks' answers, and the methods' reports."""
    from unbackdoor.report.html import View
    from unbackdoor.report.pages import page as complete

    spec, count, whole = demo.images.spec, len(demo.images), demo.record["result"]
    measured = (
        f"Measured on {count} test images ({count // spec.num_classes} of each class) that come with the package. On "
        f"the whole test set, the original network has ACC {whole['acc']['value']:.2%} and ASR "
        f"{whole['asr']['value']:.2%}."
    )
    repaired = [(one, one.report) for one in demo.contenders if one.report is not None]
    repairs = [
        {"name": one.name, "words": _words(one, demo), "report": View(report, prefix=one.name.lower(), level=3)}
        for one, report in sorted(repaired, key=lambda pair: not pair[1].story)  # those that tell a story come first
    ]
    return complete(
        "demo.html",
        package=__name__,
        title="Demo",
        heading=_heading(demo),
        record=demo.record,
        attack=demo.attack.title,
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
        ("recall", "clean images of the attacker's class given that class", "higher"),
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


def _heading(demo: Demo) -> str:
    """Which methods remove the backdoor from this network, as measured."""
    after = [(one.name, one.result.asr) for one in demo.contenders[1:]]
    removing = [name for name, asr in after if asr is not None and asr.value is not None and asr.value <= REMOVED]
    leaving = [name for name, _ in after if name not in removing]
    verdicts = [
        f"{' and '.join(names)} {verb}{'s' if len(names) == 1 else ''}"
        for names, verb in ((leaving, "leave"), (removing, "remove"))
        if names
    ]
    return " the backdoor; ".join(verdicts) + (" it" if len(verdicts) == 2 else " the backdoor")


def _named(method: Defence) -> str:
    """A method's name as it is written: published ones are abbreviations."""
    return method.name if method.paper is None else method.name.upper()


def _rates(result: Evaluation) -> Sequence[Rate | None]:
    return (result.acc, result.asr, result.ra, result.recall)


def _counts(result: Evaluation) -> tuple[tuple[int, int] | None, ...]:
    return tuple(None if rate is None else (rate.hits, rate.total) for rate in _rates(result))


def _percent(rate: Rate | None) -> str:
    return "-" if rate is None or rate.value is None else f"{rate.value:.2%}"


def _detail(one: Contender) -> str:
    """What was done to the network, in a few words."""
    if one.report is None:
        return ""
    if not one.report.layers:
        return summary.headline(one.report)
    cut = f", {summary.count(len(one.report.classifier.cut), 'classifier weight')}" if one.report.classifier else ""
    return f"{one.report.pruned} pruned, {one.report.scaled} shrunk{cut}"


def _words(one: Contender, demo: Demo) -> str:
    """What was done, how long it took, and what is left."""
    assert one.report is not None
    assert one.seconds is not None
    report, took = one.report, f"in {summary.number(one.seconds, digits=3)} seconds on this machine."
    classes = demo.images.spec.classes
    if report.story:
        named = " and ".join(f"class {label} (“{classes[label]}”)" for label in report.suspects) or "no class"
        if report.doubtful is not None:
            closed = f"class {report.doubtful} (“{classes[report.doubtful]}”)"
            named += f", but closed {closed}, which stood out most, since that cost little"
        text = (
            f"{one.name} made images from the network itself and looked for a class that is reached too easily. It "
            "tried repairs on copies of the network and judged them by easy ways into that class which another search "
            f"had found, {took} It suspected {named}."
        )
    else:
        shrunk = f" and shrank {report.scaled}" if report.scaled else ""
        text = (
            f"{one.name} scored {report.channels:,} channels in {len(report.layers)} layers, pruned "
            f"{report.pruned}{shrunk}, {took}"
        )
    if report.classifier is not None:
        guess = report.classifier.guessed_class
        text += f" It guessed from the classifier's weights that the attacker's class is {guess} (“{classes[guess]}”)."
    acc, asr = _percent(one.result.acc), _percent(one.result.asr)
    return f"{text} On the test images, an ASR of {asr} is left, and an ACC of {acc}."
