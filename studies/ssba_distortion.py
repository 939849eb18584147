"""Does SSBA's backdoor take, for several weights of the residual's size? Asked of training images only.

    python studies/ssba_distortion.py [--data-dir DIR] [--out studies/ssba_distortion.json]

ResNet-18 of width 8 is trained for 6 epochs on the first 10,000 training images of CIFAR-10, 10 % of them poisoned; the
attack success rate is that on training images 40,000 to 42,000, which the network has not seen. The default of
`ssba:distortion` is the largest weight listed here whose backdoor takes (90 %). No test image and no defence is used.

Of the trigger on those unseen images: the share of its bits that the decoder reads, the root mean square of the
residual in 255ths, and the share of the residual's energy that is the same in all images.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from unbackdoor.attacks import parse_attack
from unbackdoor.attacks.ssba import SSBA
from unbackdoor.data import load_dataset
from unbackdoor.metrics import measure
from unbackdoor.models import parse_arch
from unbackdoor.records import pretty
from unbackdoor.train import RECIPES, fit

WEIGHTS = (0.1, 0.03, 0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    data = load_dataset("cifar10", "train", options.data_dir)
    seen, unseen = data[:10_000], data[40_000:42_000]
    found = {}
    print("| distortion | ACC | ASR | bits read | RMS | in common |\n|---|---|---|---|---|---|")
    for weight in WEIGHTS:
        attack = parse_attack(f"ssba:distortion={weight}").prepare(seen, seed=0)
        assert isinstance(attack, SSBA)
        spoilt = attack.poison(
            seen.images, seen.labels, rate=0.1, num_classes=10, generator=torch.Generator().manual_seed(0)
        )
        torch.manual_seed(0)
        model = parse_arch("resnet18:width=8").build()
        recipe = replace(RECIPES["fast"], epochs=6)
        for _ in fit(model, spoilt.images, spoilt.labels, recipe=recipe, spec=data.spec, seed=0):
            pass
        result = measure(model, unseen, attack)
        stamped = attack.stamp(unseen.images)
        residual = stamped.double() - unseen.images.double()
        figures = {
            "acc": result.acc.value,
            "asr": result.asr.value if result.asr else None,
            "bits_read": float((attack.read(stamped) == attack.tensors["string"].bool()).float().mean()),
            "rms": float(residual.square().mean().sqrt()),
            "in_common": float(residual.mean(0).square().mean() / residual.square().mean()),
        }
        found[str(weight)] = {name: None if value is None else round(value, 4) for name, value in figures.items()}
        print(f"| {weight} | {' | '.join(map(str, found[str(weight)].values()))} |", flush=True)
    options.out.write_text(pretty(found))


if __name__ == "__main__":
    main()
