"""`unbackdoor train`."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

import click

from unbackdoor.cli.options import Listing, download_option, registered


@click.command(context_settings={"show_default": True})
@click.option(
    "--data", required=True, help="Data set: cifar10, ..., a data.toml, or a folder of images (docs/data.md)."
)
@click.option("--arch", "arch_text", required=True, help="Network, for example resnet18:width=16.")
@click.option(
    "--attack",
    "attack_text",
    cls=Listing,
    names=lambda: registered("attacks", "ATTACKS"),
    help="NAMES; with settings as in badnet:size=3, or a preset as in bpp@as_published (docs/attacks.md). Without it "
    "the network is clean.",
)
@click.option("--rate", type=float, default=0.1, help="Share of the training images that carry the trigger.")
@click.option("--target", type=int, help="The attacker's class. Default: the one in --attack, else 0.")
@click.option(
    "--recipe",
    "recipe_text",
    cls=Listing,
    names=lambda: registered("train", "RECIPES"),
    default="fast",
    help="NAMES; with settings as in fast:optimiser=adam,lr=0.001.",
)
@click.option("--epochs", type=int, help="Overrides the recipe's number.")
@click.option("--seed", type=int, default=0, help="Seed of the weights, poisoned images, order and augmentation.")
@click.option("--dtype", default="float32", help="Type of the stored weights: float32, bfloat16 or float16.")
@click.option("--surrogate", type=click.Path(path_type=Path), help="A clean network's file, for attacks that need one.")
@click.option(
    "--watch", type=int, default=0, help="Show ACC, ASR, RA and RECALL on this many test images after each epoch."
)
@click.option("--compile", "compiled", is_flag=True, help="Train through torch.compile.")
@click.option("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of the data sets ($UNBACKDOOR_DATA).")
@download_option
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for the result.")
@click.option("--force", is_flag=True, help="Replace a finished run in that folder, or one with other settings.")
@click.option("--quiet", is_flag=True, help="No progress and no log.")
def command(
    *,
    data: str,
    arch_text: str,
    attack_text: str | None,
    rate: float,
    target: int | None,
    recipe_text: str,
    epochs: int | None,
    seed: int,
    dtype: str,
    surrogate: Path | None,
    watch: int,
    compiled: bool,
    device: str,
    data_dir: Path | None,
    download: bool,
    output: Path,
    force: bool,
    quiet: bool,
) -> None:
    """Train a network, clean or backdoored.

    If a run was stopped, the same command resumes it after its last full epoch.
    """
    from unbackdoor.api import load_model
    from unbackdoor.api.training import Run, check_run, train_run
    from unbackdoor.attacks import parse_attack
    from unbackdoor.cli.progress import bar
    from unbackdoor.data import dataset_spec, load_dataset
    from unbackdoor.findings import Evaluation, read_evaluation
    from unbackdoor.models import parse_arch
    from unbackdoor.report.results import rates_line
    from unbackdoor.train import Epoch, Step, parse_recipe

    recipe = parse_recipe(recipe_text, epochs)
    run = Run(
        arch=parse_arch(arch_text),
        recipe=recipe,
        seed=seed,
        attack=None if attack_text is None else parse_attack(attack_text, target=target),
        rate=rate,
        dtype=dtype,
        surrogate=None if surrogate is None else surrogate.name,
        watch=watch,
        compiled=compiled,
        device=device,
        command=shlex.join(["unbackdoor", *_without_paths(sys.argv[1:])]),
    )
    check_run(run, dataset_spec(data), output, overwrite=force)
    classifier = None if surrogate is None else load_model(surrogate).float().to(device)
    with bar(f"reading {data}", quiet=quiet) as update:
        train = load_dataset(data, "train", data_dir, progress=update, download=download)
        test = load_dataset(data, "test", data_dir, progress=update)
    if train.resized + test.resized and not quiet:
        click.echo(
            f"{train.resized + test.resized:,} of {len(train) + len(test):,} images were resized to "
            f"{train.spec.size}x{train.spec.size} pixels",
            err=True,
        )

    def log(epoch: Epoch, watched: Evaluation | None) -> None:
        if not quiet:
            rates = "" if watched is None else f"  {rates_line(watched)}"
            click.echo(
                f"epoch {epoch.number}/{recipe.epochs}  loss {epoch.loss:.4f}  training accuracy "
                f"{epoch.accuracy:.2%}  {epoch.images_per_second:.0f} images/s{rates}",
                err=True,
            )

    started = time.monotonic()
    with bar("training", quiet=quiet) as update:

        def on_step(step: Step) -> None:
            done = (step.epoch - 1) * step.steps + step.step
            update(done, recipe.epochs * step.steps)

        record = train_run(
            run,
            train,
            test,
            output,
            classifier=classifier,
            overwrite=force,
            on_step=on_step,
            on_epoch=log,
            on_prepare=update,
            on_evaluate=update,
        )
    if record["note"]:
        click.echo(f"note: {record['note']}", err=True)
    click.echo(f"{output}: {rates_line(read_evaluation(record['result']))}")
    if not quiet:
        click.echo(f"{time.monotonic() - started:.0f} s", err=True)


def _without_paths(words: list[str]) -> list[str]:
    """The command line without this machine's folders, for a record that others read."""
    result, skip, before = [], False, ""
    for word in words:
        if skip:
            skip = False
        elif before == "--surrogate" or word.startswith("--surrogate="):
            option, equals, path = word.rpartition("=")
            result.append(option + equals + Path(path).name)
        elif word in ("-o", "--output", "--data-dir"):
            skip = True
        elif not word.startswith(("--output=", "--data-dir=", "-o")):
            result.append(word)
        before = word
    return result
