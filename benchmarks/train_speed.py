"""Images per second of training: this package's loop against the loop that most tutorials have.

    python benchmarks/train_speed.py [--data-dir DIR] [--images 5120] [--rounds 3]

ResNet-18 of width 16, CIFAR-10, batch 128, in turns in one process. The reference reads PIL images by torchvision's
RandomCrop, RandomHorizontalFlip, ToTensor and Normalize, with two workers, and trains in float32. Writes
benchmarks/train_speed.json. Needs torchvision and the data set.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from unbackdoor.data import LabelledImages, load_dataset
from unbackdoor.models import parse_arch
from unbackdoor.precision import autocast_dtype
from unbackdoor.provenance import processor
from unbackdoor.train import RECIPES, fit

RECIPE = replace(RECIPES["fast"], epochs=1)


class Pictures(Dataset[tuple[Tensor, int]]):
    """The same images as PIL images with torchvision's transforms."""

    def __init__(self, images: LabelledImages) -> None:
        self.pictures = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in images.images]
        self.labels = images.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(images.spec.size, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(images.spec.mean, images.spec.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.pictures[index]), self.labels[index]


def ours(images: LabelledImages) -> float:
    """Images per second of one epoch."""
    model = parse_arch("resnet18:width=16").build()
    started = time.perf_counter()
    for _ in fit(model, images.images, images.labels, recipe=RECIPE, spec=images.spec, seed=0):
        pass
    return len(images) / (time.perf_counter() - started)


def reference(pictures: Pictures) -> float:
    """Images per second of one epoch, workers' start included."""
    model = parse_arch("resnet18:width=16").build().train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    started = time.perf_counter()
    for x, y in DataLoader(pictures, RECIPE.batch_size, shuffle=True, num_workers=2):
        loss = F.cross_entropy(model(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return len(pictures) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--images", type=int, default=5120)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    images = load_dataset("cifar10", "train", options.data_dir)[: options.images]
    pictures = Pictures(images)
    ours(images[:512])  # warm-up
    rounds = [(ours(images), reference(pictures)) for _ in range(options.rounds)]
    fast, slow = (statistics.median(values) for values in zip(*rounds, strict=True))
    dtype = autocast_dtype(torch.device("cpu"))
    record = {
        "images": len(images),
        "images_per_second": {"unbackdoor": round(fast), "reference": round(slow)},
        "ratio": round(statistics.median(a / b for a, b in rounds), 2),
        "rounds": [[round(a), round(b)] for a, b in rounds],
        "autocast": None if dtype is None else str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "processor": processor(),
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
