"""The population: many small networks, clean and backdoored, on which what needs no data is calibrated and judged.

    python studies/population.py slice -o runs/population      # 20 classes of Tiny ImageNet, and a data.toml
    python studies/population.py grids                         # writes grids/population/*.toml
    python studies/population.py restore --store runs/population/store   # the networks that are in zoo/population
    unbackdoor bench run grids/population/calibration.toml --store runs/population/store --threads 1
    python studies/population.py keep --store runs/population/store      # copies those that stay to zoo/population

A pair is an architecture with a recipe. SEED splits the pairs once into two halves, so no pair is in both. Thresholds
and fits are made on the calibration half; the judgement half is read for the final tables alone. The rule for an attack
that did not take was written before any network was trained: an ASR below 80 % leaves the population, whatever the
reason, and the tables count it.

The grids list their networks in rounds, one clean and one backdoored network of every pair in each, so that a grid
that was stopped leaves a balanced part. Targets are drawn from all classes but 0, which clean networks prefer.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from unbackdoor.data import data_root
from unbackdoor.experiments import Store
from unbackdoor.leaderboard.tables import ESTABLISHED

SEED = 14
#: Where networks are kept that were trained once, so that not everybody must train them.
KEPT = Path(__file__).parents[1] / "zoo" / "population"
#: Of Tiny ImageNet's 200 classes, every tenth.
STEP = 10
#: Attacks whose trigger needs more passes to be learned.
SLOW = ("wanet",)
CLASSES = {"cifar10": 10, "gtsrb": 43, "tiny20": 20}
ROUNDS = 3

_ADAM = "fast:optimiser=adam,lr=0.002,weight_decay=0.0"
_BARE = f"{_ADAM},crop_padding=0,flip=false"


@dataclass(frozen=True)
class Pair:
    """An architecture with a recipe, and the data set of its networks."""

    arch: str
    recipe: str
    data: str
    epochs: int
    batch_norm: bool = True


@dataclass(frozen=True)
class Network:
    """One network of the population."""

    pair: Pair
    seed: int
    attack: str = "none"
    rate: float = 0.0
    target: int = 0


#: Each architecture with two recipes: SGD and Adam, weight decay 0 to 5e-3, with and without augmentation.
PAIRS = (
    Pair("resnet18:width=8,stride=2", "fast", "cifar10", 8),
    Pair("resnet18:width=8,stride=2", _ADAM, "gtsrb", 8),
    Pair("preactresnet18:width=8,stride=2", "fast:lr=0.05,weight_decay=0.005", "cifar10", 10),
    Pair("preactresnet18:width=8,stride=2", _BARE, "gtsrb", 8),
    Pair("vgg16_bn:width=8", "fast:weight_decay=0.0", "cifar10", 8),
    Pair("vgg16_bn:width=8", _BARE, "gtsrb", 8),
    Pair("vgg16_bn_elu:width=8", _ADAM, "cifar10", 8),
    Pair("vgg16_bn_elu:width=8", "fast:lr=0.05", "gtsrb", 8),
    Pair("wideresnet16:width=12,stride=2", "fast", "gtsrb", 8),
    Pair("wideresnet16:width=12,stride=2", "fast:crop_padding=0,flip=false", "cifar10", 8),
    Pair("densenet121:growth=4,stride=2", "fast", "gtsrb", 4),
    Pair("densenet121:growth=4,stride=2", _ADAM, "cifar10", 4),
    Pair("mobilenetv2:width=8,stride=2", "fast:lr=0.05", "gtsrb", 6),
    Pair("mobilenetv2:width=8,stride=2", _ADAM, "cifar10", 5),
    Pair("vgg19:width=8", "fast:optimiser=adam,lr=0.0005,weight_decay=0.0", "gtsrb", 12, batch_norm=False),
    Pair("vgg19:width=8", "fast:optimiser=adam,lr=0.0005,weight_decay=0.0005", "cifar10", 10, batch_norm=False),
    Pair("resnet18_gn:width=8,stride=2", "fast:lr=0.05", "cifar10", 12, batch_norm=False),
    Pair("resnet18_gn:width=8,stride=2", _ADAM, "gtsrb", 12, batch_norm=False),
    Pair("vit_small:width=96,depth=4,patch=8", "fast:optimiser=adam,lr=0.001", "gtsrb", 12, batch_norm=False),
    Pair("vit_small:width=96,depth=4,patch=8", _ADAM, "cifar10", 14, batch_norm=False),
    Pair("mixer_small:width=96,patch=8", _ADAM, "cifar10", 20, batch_norm=False),
    Pair("mixer_small:width=96,patch=8", "fast:optimiser=adam,lr=0.001", "gtsrb", 20, batch_norm=False),
    Pair("resnet50:width=4,stride=2", "fast:lr=0.05", "tiny20", 40),
    Pair("resnet18:width=10,stride=2", _ADAM, "tiny20", 20),
)

#: Attacks with their rates, in the order in which they are dealt.
ATTACKS = (
    ("badnet", 0.1),
    ("blended", 0.05),
    ("bpp", 0.1),
    ("badnet:size=5,place=centre", 0.02),
    ("wanet:s=1.0", 0.1),
    ("sig", 0.08),
    ("lf", 0.05),
    ("badnet:pattern=checkerboard,place=top-left", 0.05),
    ("ssba", 0.1),
    ("inputaware", 0.1),
    ("badnet:mapping=all-to-all", 0.1),
    ("blended:alpha=0.1", 0.2),
    ("badnet:size=4,flat_norms=1.0", 0.1),
    ("blended:flat_norms=1.0", 0.1),
    ("badnet:size=2,place=bottom-left", 0.005),
)
#: GTSRB's classes of 6 % of its images; SIG poisons images of its target alone.
FREQUENT = (1, 2)

_SLOWLY = "fast:optimiser=adam,lr=0.001,weight_decay=0.0001"
_ELU, _PLAIN = (f"grids/population/networks.py:{name}" for name in ("elu_cnn", "plain_cnn"))
#: Ten more with a backdoor, of architectures and recipes that appear nowhere else; nothing is tuned on them.
FURTHER = (
    Network(Pair(_ELU, f"{_SLOWLY},batch_size=64", "cifar10", 5), 9000, "badnet:size=4,place=top-right", 0.05, 7),
    Network(Pair(_ELU, f"{_SLOWLY},crop_padding=2", "gtsrb", 5), 9010, "blended:alpha=0.15", 0.05, 12),
    Network(Pair(_ELU, "fast:lr=0.02,schedule=onecycle", "cifar10", 5), 9020, "lf", 0.1, 4),
    Network(
        Pair(_PLAIN, f"{_SLOWLY},crop_padding=0", "gtsrb", 6), 9030, "badnet:pattern=checkerboard,size=5", 0.02, 13
    ),
    Network(Pair(_PLAIN, "fast:lr=0.02,nesterov=true", "cifar10", 8), 9040, "ssba", 0.1, 1),
    Network(
        Pair("preactresnet18:width=24,stride=2", "fast:lr=0.05,batch_size=64,nesterov=true", "cifar10", 7),
        9050,
        "inputaware",
        0.1,
        2,
    ),
    Network(Pair("resnet34:width=8,stride=2", "fast:schedule=onecycle", "cifar10", 10), 9060, "sig", 0.08, 6),
    Network(Pair("mobilenetv2:width=12,stride=2", f"{_SLOWLY},flip=false", "gtsrb", 6), 9070, "bpp", 0.1, 22),
    Network(
        Pair("vit_small:width=72,depth=5,patch=4", f"{_SLOWLY},crop_padding=2", "gtsrb", 10),
        9080,
        "badnet:size=6,place=centre",
        0.05,
        31,
    ),
    Network(Pair("resnet18:width=16,stride=2", "fast:lr=0.2", "tiny_imagenet", 8), 9090, "blended", 0.05, 77),
)

_FLAT = Pair("grids/population/networks.py:flat_cnn", _SLOWLY, "cifar10", 5)
#: Networks with a wide classifier, of no half, on which erasing was developed (docs/repairs.md).
FLAT = (
    Network(_FLAT, 7000, "lf", 0.05, 6),
    Network(_FLAT, 7010, "badnet", 0.05, 2),
    Network(_FLAT, 7020, "blended", 0.05, 8),
)

_GENTLY = "fast:optimiser=adam,lr=0.001,weight_decay=0.0005"
#: Clean networks beside the population, of pairs that no half has: more honest ones to compare a network with.
HONEST = tuple(
    Network(pair, 5000 + 10 * place)
    for place, pair in enumerate(
        (
            Pair("resnet18:width=12,stride=2", "fast:lr=0.05", "cifar10", 6),
            Pair("mobilenetv2:width=10,stride=2", "fast:lr=0.02", "cifar10", 6),
            Pair("mixer_small:width=64,patch=8", _GENTLY, "gtsrb", 14, batch_norm=False),
            Pair("resnet18:width=9,stride=2", _GENTLY, "cifar10", 8),
            Pair("vgg19_bn:width=8", "fast:lr=0.05", "gtsrb", 8),
            Pair("preactresnet18:width=12,stride=2", _GENTLY, "cifar10", 6),
            Pair("mobilenetv2:width=14,stride=2", _GENTLY, "gtsrb", 6),
            Pair("vgg16_bn:width=12", "fast:lr=0.05,weight_decay=0.001", "cifar10", 6),
            Pair("resnet18:width=12,stride=2", _BARE, "gtsrb", 6),
            Pair("wideresnet16:width=8,stride=2", _GENTLY, "cifar10", 8),
            Pair("resnet18:width=10,stride=2", "fast:crop_padding=0,flip=false", "cifar10", 6),
            Pair("mobilenetv2:width=14,stride=2", "fast:weight_decay=0.001", "cifar10", 6),
            Pair("vgg16_bn_elu:width=12", "fast:lr=0.02", "cifar10", 6),
            Pair("vit_small:width=72,depth=3,patch=8", _GENTLY, "gtsrb", 10, batch_norm=False),
            Pair("resnet34:width=6,stride=2", "fast:lr=0.05", "gtsrb", 6),
            Pair("mixer_small:width=80,patch=8", "fast:optimiser=adam,lr=0.002", "cifar10", 12, batch_norm=False),
            Pair("resnet18_gn:width=12,stride=2", _GENTLY, "gtsrb", 8, batch_norm=False),
            Pair("vgg19:width=10", "fast:optimiser=adam,lr=0.0005", "gtsrb", 8, batch_norm=False),
            Pair("preactresnet18:width=10,stride=2", "fast:lr=0.1,weight_decay=0.001", "gtsrb", 6),
            Pair("wideresnet16:width=16,stride=2", "fast:lr=0.05,weight_decay=0.001", "cifar10", 6),
        )
    )
)

#: Repairs that are judged: those that are given no data, and rivals that are given shares of clean training images.
#: ANP, which takes twenty minutes a network, comes last.
AUTO = ("lpp@auto", "clp@auto")
REPAIRS = ("none", "lpp", "clp", *AUTO, "best")
RIVALS = ("bnp", "ep", "nad", "ibau", "ft", "fp", "rnp")
LAST = ("anp",)
#: Fixed thresholds beside those that `AUTO` chooses.
FIXED = ("2", "2.5", "3", "3.5", "4", "5")
CLEAN = (0.05, 0.01)
#: EP asks for the training set, poisoned images and all: of its images, this share carries the trigger.
POISONED = 0.1


def halves() -> dict[str, tuple[Pair, ...]]:
    """The pairs of each half."""
    shuffled = random.Random(SEED).sample(PAIRS, len(PAIRS))
    middle = len(PAIRS) // 2
    return {"calibration": tuple(shuffled[:middle]), "judgement": tuple(shuffled[middle:])}


def networks(pairs: Sequence[Pair]) -> Iterator[Network]:
    """The networks of a half, in rounds: a clean one and a backdoored one of each pair."""
    draw = random.Random(SEED)
    deal = itertools.cycle(ATTACKS)
    for turn in range(ROUNDS):
        for pair in pairs:
            seed = 1000 * turn + 10 * PAIRS.index(pair)
            if turn < 2 or PAIRS.index(pair) % 2:
                yield Network(pair, seed)
            attack, rate = next(deal)
            while not pair.batch_norm and "flat_norms" in attack:
                attack, rate = next(deal)
            target = draw.randrange(1, CLASSES[pair.data])
            if attack == "sig":
                rate = {"cifar10": 0.08, "gtsrb": 0.04, "tiny20": 0.04}[pair.data]
                target = draw.choice(FREQUENT) if pair.data == "gtsrb" else target
            yield Network(pair, seed + 1, attack, rate, 0 if "all-to-all" in attack else target)


def grid(name: str, title: str, trained: Iterable[Network]) -> str:
    """Networks as a grid."""
    lines = _head(name, title)
    for network in trained:
        lines += _run(network)
    return "\n".join(lines) + "\n"


def repairs() -> str:
    """Every repair of every network of the judgement half, as a grid; those that are given no data first."""
    lines = _head("repairs", "Repairs of the population, judgement half")
    given = [f"clean = [{', '.join(map(str, CLEAN))}]", f"poisoned = {POISONED}"]
    for methods, more in ((REPAIRS, []), (RIVALS, given), (LAST, given)):
        for network in networks(halves()["judgement"]):
            lines += [*_run(network, methods), *more]
    return "\n".join(lines) + "\n"


def thresholds() -> str:
    """LPP and CLP on every network of the judgement half, at each fixed threshold and at one that is chosen."""
    lines = _head("thresholds", "Thresholds, judgement half")
    methods = [*AUTO, *(f"lpp:upper={u},lower=-{u}" for u in FIXED), *(f"clp:u={u}" for u in FIXED)]
    for network in networks(halves()["judgement"]):
        lines += _run(network, methods)
    return "\n".join(lines) + "\n"


def grids() -> dict[str, str]:
    """Every grid by the name of its file."""
    return {
        **{half: grid(half, f"The population, {half} half", networks(pairs)) for half, pairs in halves().items()},
        "further": grid("further", "Ten further networks", FURTHER),
        "flat": grid("flat", "Networks with a wide classifier", FLAT),
        "honest": grid("honest", "More honest networks", HONEST),
        "repairs": repairs(),
        "thresholds": thresholds(),
    }


def _head(name: str, title: str) -> list[str]:
    head = "# Written by `python studies/population.py grids`; see there."
    return [head, f'name = "population-{name}"', f'title = "{title}"']


def _run(network: Network, methods: Sequence[str] = ()) -> list[str]:
    pair = network.pair
    data = "runs/population/data.toml:tiny20" if pair.data == "tiny20" else pair.data
    slow = 3 if network.attack.partition(":")[0] in SLOW else 1
    lines = ["", "[[runs]]", f'data = "{data}"', f'arch = "{pair.arch}"', f'recipe = "{pair.recipe}"']
    lines += [f"epochs = {slow * pair.epochs}", f"seed = {network.seed}", 'dtype = "bfloat16"']
    if network.attack != "none":
        lines += [f'attack = "{network.attack}"', f"rate = {network.rate}", f"target = {network.target}"]
    if methods:
        named = ", ".join(f'"{method}"' for method in methods)
        lines += [f"method = [{named}]"]
    return lines


def write_slice(folder: Path, data_dir: Path | None) -> None:
    """Every tenth class of Tiny ImageNet, as parquet files beside a data.toml."""
    import pyarrow.parquet as pq

    source = data_root(data_dir) / "tiny_imagenet"
    (folder / "tiny20").mkdir(parents=True, exist_ok=True)
    for split in ("train", "valid"):
        (path,) = source.glob(f"{split}-*.parquet")
        table = pq.read_table(path).replace_schema_metadata(None)
        labels = table["label"].to_numpy()
        table = table.filter(labels % STEP == 0)
        table = table.set_column(table.schema.get_field_index("label"), "label", [labels[labels % STEP == 0] // STEP])
        pq.write_table(table, folder / "tiny20" / path.name)
    (folder / "data.toml").write_text(
        'tiny20 = { folder = "tiny20", size = 64, flip = true, mean = [0.4802, 0.4481, 0.3975], '
        'std = [0.2302, 0.2265, 0.2262], splits = ["train", "valid"] }\n'
    )


def stays(record: Path) -> bool:
    """Whether a network is clean, or its attack took."""
    rate = json.loads(record.read_text())["record"]["result"]["rates"]["asr"]
    return rate is None or 100 * rate["value"] >= ESTABLISHED


def copied(source: Path, target: Path) -> int:
    """Copy finished networks that stay from one folder to another; how many are there then."""
    for record in filter(stays, sorted(source.glob("training/*/record.json"))):
        shutil.copytree(record.parent, target / "training" / record.parent.name, dirs_exist_ok=True)
    return len(list(target.glob("training/*/record.json")))


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("slice", "grids", "keep", "restore"))
    parser.add_argument("--store", type=Path, default=Path("runs/population/store"), help="the store [%(default)s]")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/population"), help="folder of the slice")
    parser.add_argument("--data-dir", type=Path, help="folder of the data sets ($UNBACKDOOR_DATA)")
    args = parser.parse_args()
    if args.what == "slice":
        write_slice(args.output, args.data_dir)
        return
    if args.what in ("keep", "restore"):
        store = Store(args.store, make=args.what == "restore")
        source, target = (store.root, KEPT) if args.what == "keep" else (KEPT, store.root)
        print(f"{target}: {copied(source, target)} networks")
        return
    here = Path(__file__).parents[1] / "grids" / "population"
    here.mkdir(exist_ok=True)
    for name, text in grids().items():
        (here / f"{name}.toml").write_text(text)


if __name__ == "__main__":
    main()
