"""`unbackdoor train`."""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from pathlib import Path

import click


@click.command(context_settings={"show_default": True})
@click.option("--data", required=True, help="Data set, for example cifar10.")
@click.option("--arch", "arch_text", required=True, help="Network, for example resnet18:width=16.")
@click.option(
    "--attack",
    "attack_text",
    help="Attack, for example badnet or badnet:size=3; none trains a clean network.",
)
@click.option("--rate", type=float, default=0.1, help="Share of the training images that carry the trigger.")
@click.option("--target", type=int, default=0, help="The attacker's class.")
@click.option("--recipe", "recipe_name", default="fast", help="fast, paper, backdoorbench or clp.")
@click.option("--epochs", type=int, help="Instead of the recipe's number.")
@click.option("--seed", type=int, default=0, help="Of weights, poisoned images, order and augmentation.")
@click.option("--dtype", default="float32", help="Of the stored weights: float32, bfloat16 or float16.")
@click.option("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of the data sets ($UNBACKDOOR_DATA).")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for the result.")
@click.option("--force", is_flag=True, help="Replace a finished run in that folder.")
@click.option("--quiet", is_flag=True, help="No progress and no log.")
def command(
    *,
    data: str,
    arch_text: str,
    attack_text: str | None,
    rate: float,
    target: int,
    recipe_name: str,
    epochs: int | None,
    seed: int,
    dtype: str,
    device: str,
    data_dir: Path | None,
    output: Path,
    force: bool,
    quiet: bool,
) -> None:
    """Train a network, clean or backdoored.

    A run that was stopped goes on after its last full epoch when the same command is given again.
    """
    from unbackdoor.attacks import parse_attack
    from unbackdoor.cli.progress import bar
    from unbackdoor.data import DATASETS, load_dataset
    from unbackdoor.models import parse_arch
    from unbackdoor.train import RECIPES, Epoch, Run, Step, check_run, train_run

    recipe = RECIPES[recipe_name]
    if epochs is not None:
        recipe = dataclasses.replace(recipe, epochs=epochs)
    run = Run(
        arch=parse_arch(arch_text),
        recipe=recipe,
        seed=seed,
        attack=None if attack_text is None else parse_attack(attack_text, target=target),
        rate=rate,
        dtype=dtype,
        device=device,
        command=shlex.join(["unbackdoor", *_without_paths(sys.argv[1:])]),
    )
    check_run(run, DATASETS[data], output, overwrite=force)
    with bar(f"reading {data}", quiet=quiet) as update:
        train = load_dataset(data, "train", data_dir, progress=update)
        test = load_dataset(data, "test", data_dir, progress=update)

    def log(epoch: Epoch) -> None:
        if not quiet:
            click.echo(
                f"epoch {epoch.number}/{recipe.epochs}  loss {epoch.loss:.4f}  training accuracy "
                f"{epoch.accuracy:.2%}  {epoch.images_per_second:.0f} images/s",
                err=True,
            )

    started = time.monotonic()
    with bar("training", quiet=quiet) as update:

        def on_step(step: Step) -> None:
            done = (step.epoch - 1) * step.steps + step.step
            update(done, recipe.epochs * step.steps)

        record = train_run(run, train, test, output, overwrite=force, on_step=on_step, on_epoch=log, on_evaluate=update)
    rates = "  ".join(
        f"{name.upper()} {rate['value']:.2%} ({rate['hits']} of {rate['total']})"
        for name, rate in record["result"].items()
        if rate is not None
    )
    click.echo(f"{output}: {rates}")
    if not quiet:
        click.echo(f"{time.monotonic() - started:.0f} s", err=True)


def _without_paths(words: list[str]) -> list[str]:
    """The command line without the folders of this machine, which say nothing to another reader."""
    result, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word in ("-o", "--output", "--data-dir"):
            skip = True
        elif not word.startswith(("--output=", "--data-dir=", "-o")):
            result.append(word)
    return result
