"""Does SSBA's backdoor take, for several weights of the residual's size? Asked of training images only.

    python benchmarks/ssba_distortion.py [--data-dir DIR]

ResNet-18 of width 8 is trained for 6 epochs on the first 10,000 training images of CIFAR-10, 10 % of them poisoned; the
attack success rate is that on training images 40,000 to 42,000, which the network has not seen. The default of
`ssba:distortion` is the largest weight listed here whose backdoor takes (90 %). No test image and no defence is used.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch

from unbackdoor.attacks import parse_attack
from unbackdoor.attacks.base import DataPoisoning
from unbackdoor.data import load_dataset
from unbackdoor.models import parse_arch
from unbackdoor.train import RECIPES, fit, measure

WEIGHTS = (0.1, 0.03, 0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    options = parser.parse_args()
    data = load_dataset("cifar10", "train", options.data_dir)
    seen, unseen = data[:10_000], data[40_000:42_000]
    print("| distortion | ACC | ASR |\n|---|---|---|")
    for weight in WEIGHTS:
        attack = parse_attack(f"ssba:distortion={weight}").armed(seen, seed=0)
        assert isinstance(attack, DataPoisoning)
        spoilt = attack.poison(
            seen.images, seen.labels, rate=0.1, num_classes=10, generator=torch.Generator().manual_seed(0)
        )
        torch.manual_seed(0)
        model = parse_arch("resnet18:width=8").build()
        recipe = replace(RECIPES["fast"], epochs=6)
        for _ in fit(model, spoilt.images, spoilt.labels, recipe=recipe, spec=data.spec, seed=0):
            pass
        result = measure(model, unseen, attack)
        acc, asr = result.acc.value, result.asr.value if result.asr else None
        print(f"| {weight} | {acc:.2%} | {asr:.2%} |", flush=True)


if __name__ == "__main__":
    main()
