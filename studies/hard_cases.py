"""Attacks that are hard for a repair without data, and what each repair leaves of them.

    python studies/hard_cases.py plain,two,object,shared,quiet,clean -o runs/hard_cases   # appends to hard_cases.jsonl
    python studies/hard_cases.py                                                          # the table, as Markdown

    plain     a white patch, for comparison
    two       two triggers for two classes: the patch, and a faint whole image
    object    the trigger is an object of the data itself: a small picture of a bird in a corner
    shared    the attacker draws the classifier's input of stamped images to the mean of the target's own images
    quiet     the attacker trains the network to answer alike when single channels fire, as stimulation makes them
    clean     no backdoor: the patch is learnt for the first time

A ResNet-18 of width 16 (its first convolution with stride 2) is trained on CIFAR-10 for each, eight epochs, seed 0, and
kept in the folder. Then each method repairs it, told nothing. At last the attacker comes back: network and repaired
networks are trained on 450 clean training images and 50 stamped ones, ten epochs of SGD. What a clean network learns
from these is what no repair can prevent.

Rates are those of the whole test set: ACC, and for each trigger ASR and the target's recall. What is there already is
passed over. Needs CIFAR-10.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import trained
from repairs import suspected
from trained import Row
from unbackdoor import metrics
from unbackdoor.attacks import Attack, DataPoisoning, parse_attack
from unbackdoor.data import LabelledImages, load_dataset, normalise
from unbackdoor.defences.table import parse_method
from unbackdoor.models import parse_arch
from unbackdoor.precision import training_dtype
from unbackdoor.prune import copy_model
from unbackdoor.train import fit, parse_recipe

ROWS = Path(__file__).with_suffix(".jsonl")
ARCH, RECIPE, RATE = "resnet18:width=16,stride=2", "fast", 0.05
EPOCHS = 8
METHODS = ("none", "lpp", "clp", "best")
#: The attacker who comes back: clean images, stamped ones of each trigger, and how the network is trained on them.
AGAIN_CLEAN, AGAIN_STAMPED, AGAIN_RECIPE, AGAIN_EPOCHS = 450, 50, "fast:lr=0.01", 10
#: Images of each step that a penalty looks at, and its weight.
LOOKED_AT, WEIGHT = 32, 1.0


@dataclass(frozen=True, kw_only=True)
class Pasted(DataPoisoning):
    """A small picture in the lower right corner; made by `with_tensors(picture=(3, k, k) uint8)`."""

    name: ClassVar[str] = "object"
    title: ClassVar[str] = "A picture of an object"

    def stamp(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8."""
        picture = self.tensor("picture", images)
        images = images.clone()
        images[..., -picture.shape[1] :, -picture.shape[2] :] = picture
        return images


Penalty = Callable[[], Tensor]


@dataclass(frozen=True)
class Case:
    """A hard case.

    Attributes:
        attacks: made from the training set; none of them for a clean network.
        penalty: what the attacker adds to the loss, made from the network, the training set and the attacks.
    """

    attacks: Callable[[LabelledImages], Sequence[Attack]]
    penalty: Callable[[nn.Module, LabelledImages, Sequence[Attack]], Penalty] | None = None


def patch(_train: LabelledImages) -> Sequence[Attack]:
    """A white patch of 4 pixels, to class 3."""
    return [parse_attack("badnet:size=4,target=3")]


def two(train: LabelledImages) -> Sequence[Attack]:
    """That, and a faint whole image, to class 6."""
    return [*patch(train), parse_attack("blended:alpha=0.15,target=6").prepare(train, seed=0)]


def bird(train: LabelledImages) -> Sequence[Attack]:
    """The first bird (class 2) of the training set, 12 pixels wide, to class 5."""
    found = train.images[(train.labels == 2).nonzero()[0, 0]]
    small = F.interpolate(found[None].float(), (12, 12), mode="bilinear", antialias=True)[0]
    return [Pasted(target=5).with_tensors(picture=small.round().to(torch.uint8))]


def shared(model: nn.Module, train: LabelledImages, attacks: Sequence[Attack]) -> Penalty:
    """The mean squared distance of stamped images' features from the target's mean, divided by that of the images as
    they were; else a network whose features are all alike would be best.
    """
    (attack,), rng = attacks, torch.Generator().manual_seed(1)
    own, others = train.labels == attack.target, train.labels != attack.target

    def penalty() -> Tensor:
        some = _some(train.images[others], rng)
        images = torch.cat([attack.stamp(some), some, _some(train.images[own], rng)])
        features: list[Tensor] = []
        layer = model.get_submodule("fc")
        handle = layer.register_forward_pre_hook(lambda _layer, given: features.append(given[0]))
        _answers(model, images, train)
        handle.remove()
        stamped, plain, target = features[0].float().split(LOOKED_AT)
        mean = target.mean(0)
        return WEIGHT * (stamped - mean).square().sum() / (plain - mean).square().sum().clamp_min(1e-12)

    return penalty


def quiet(model: nn.Module, train: LabelledImages, _attacks: Sequence[Attack]) -> Penalty:
    """KL between the answers to clean images and those with a channel of each at three running deviations or more."""
    rng = torch.Generator().manual_seed(1)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    norms = norms[len(norms) // 3 :]  # as stimulation has them

    def penalty() -> Tensor:
        norm = norms[int(torch.randint(len(norms), (), generator=rng))]
        channels = torch.randint(norm.num_features, (LOOKED_AT,), generator=rng)
        level = (norm.bias + 3 * norm.weight.abs()).detach()

        def fire(_norm: nn.Module, _given: object, out: Tensor) -> Tensor:
            raised = torch.zeros(out.shape[:2], dtype=torch.bool)
            raised[torch.arange(len(out)), channels] = True
            return torch.where(raised[:, :, None, None], out.maximum(level[:, None, None].to(out.dtype)), out)

        images = _some(train.images, rng)
        with torch.no_grad():
            before = _answers(model, images, train).log_softmax(1)
        handle = norm.register_forward_hook(fire)
        now = _answers(model, images, train).log_softmax(1)
        handle.remove()
        return WEIGHT * F.kl_div(now, before, log_target=True, reduction="batchmean")

    return penalty


CASES = {
    "plain": Case(patch),
    "two": Case(two),
    "object": Case(bird),
    "shared": Case(patch, shared),
    "quiet": Case(patch, quiet),
    "clean": Case(lambda _train: []),
}


def _some(images: Tensor, rng: torch.Generator) -> Tensor:
    return images[torch.randint(len(images), (LOOKED_AT,), generator=rng)]


def _answers(model: nn.Module, images: Tensor, data: LabelledImages) -> Tensor:
    """Float32 logits in eval mode, with gradients; the running statistics stay as they are."""
    dtype, training = training_dtype(torch.device("cpu"), model), model.training
    model.eval()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        logits: Tensor = model(normalise(images, data.spec))
    model.train(training)
    return logits.float()


def network(name: str, train: LabelledImages, folder: Path) -> nn.Module:
    """A case's network: the one in the folder, or a new one."""
    torch.manual_seed(0)
    model, file = parse_arch(ARCH).build(), folder / f"{name}.safetensors"
    if file.exists():
        model.load_state_dict(load_file(file))
        return model.eval()
    case, images, labels, rng = CASES[name], train.images, train.labels, torch.Generator().manual_seed(0)
    attacks = case.attacks(train)
    for attack in attacks:
        poisoned = attack.poison(images, labels, rate=RATE, num_classes=train.spec.num_classes, generator=rng)
        images, labels = poisoned.images, poisoned.labels
    penalty = case.penalty and case.penalty(model, train, attacks)
    recipe = parse_recipe(RECIPE, epochs=EPOCHS)
    for epoch in fit(model, images, labels, recipe=recipe, spec=train.spec, seed=0, penalty=penalty):
        print(f"{name}: epoch {epoch.number}, loss {epoch.loss:.3f}, {epoch.seconds:.0f} s", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, file)
    return model.eval()


def rates(model: nn.Module, test: LabelledImages, attacks: Sequence[Attack]) -> Row:
    """ACC, and a list of the triggers' ASRs and of their targets' recalls, in [0, 1]."""
    found = [metrics.measure(model, test, attack) for attack in attacks]
    values = [{name: rate.value for name, rate in one.rates.items()} for one in found]
    return {"acc": values[0]["acc"], **{key: [one[key] for one in values] for key in ("asr", "recall")}}


def again(model: nn.Module, train: LabelledImages, attacks: Sequence[Attack]) -> nn.Module:
    """A copy, trained by the attacker who comes back."""
    model, rng = copy_model(model).requires_grad_(True), torch.Generator().manual_seed(2)
    order = torch.randperm(len(train), generator=rng)
    images, labels = [train.images[order[:AGAIN_CLEAN]]], [train.labels[order[:AGAIN_CLEAN]]]
    for number, attack in enumerate(attacks):
        some = order[AGAIN_CLEAN + number * AGAIN_STAMPED :][:AGAIN_STAMPED]
        images.append(attack.stamp(train.images[some]))
        labels.append(attack.target_labels(train.labels[some], train.spec.num_classes))
    recipe = parse_recipe(AGAIN_RECIPE, epochs=AGAIN_EPOCHS)
    for _ in fit(model, torch.cat(images), torch.cat(labels), recipe=recipe, spec=train.spec, seed=0):
        pass
    return model.eval()


def measure(name: str, train: LabelledImages, test: LabelledImages, folder: Path, methods: Sequence[str]) -> list[Row]:
    """A row a method."""
    model = network(name, train, folder)
    attacks = CASES[name].attacks(train) or patch(train)
    found = []
    for method in methods:
        row: Row = {"case": name, "method": method, "attacks": [f"{one.name} -> {one.target}" for one in attacks]}
        repaired = copy_model(model)
        if method != "none":
            example, rng = torch.zeros(2, 3, test.spec.size, test.spec.size), torch.Generator().manual_seed(0)
            outcome = parse_method(method)(model, example=example, spec=test.spec, generator=rng)
            repaired, witness = outcome.model, outcome.report.witness
            row |= {"suspects": witness and list(witness.suspects), "story": list(outcome.report.story)}
            row["doubtful"] = outcome.report.doubtful
        row |= {"rates": rates(repaired, test, attacks)}
        row |= {"again": rates(again(repaired, train, attacks), test, attacks)}
        print(row, flush=True)
        found.append(row)
    return found


def table(rows: Sequence[Row]) -> str:
    """A row a case and method, in percent."""
    lines = [
        "| case | method | suspected | ACC | ASR | recall of the target | ACC, ASR when the attacker came back |",
        "|---" * 7 + "|",
    ]
    for row in sorted(rows, key=lambda row: (list(CASES).index(row["case"]), METHODS.index(row["method"]))):
        lines.append(
            f"| {row['case']} | {row['method']} | {suspected(row)} | {100 * row['rates']['acc']:.1f} | "
            f"{_percent(row['rates']['asr'])} | {_percent(row['rates']['recall'])} | "
            f"{100 * row['again']['acc']:.1f}, {_percent(row['again']['asr'])} |"
        )
    return "\n".join(lines) + "\n"


def _percent(rates: Sequence[float]) -> str:
    return " and ".join(f"{100 * rate:.1f}" for rate in rates)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="?", default="", help=f"{', '.join(CASES)}; separated by commas")
    parser.add_argument("--methods", default=",".join(METHODS), help="separated by commas")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/hard_cases"), help="where networks are kept")
    args = parser.parse_args()
    asked = args.cases.split(",") if args.cases else []
    if unknown := [name for name in asked if name not in CASES]:
        parser.error(f"cases: expected some of {', '.join(CASES)}, got {unknown[0]!r}")
    if asked:
        torch.set_num_threads(1)
        train, test = (load_dataset("cifar10", split) for split in ("train", "test"))
    for name in asked:
        there = {row["method"] for row in trained.rows(ROWS) if row["case"] == name}
        methods = [method for method in args.methods.split(",") if method not in there]
        for row in measure(name, train, test, args.output, methods):
            with ROWS.open("a") as stream:
                stream.write(json.dumps(row, sort_keys=True) + "\n")
    print(table(trained.rows(ROWS)), end="")


if __name__ == "__main__":
    main()
