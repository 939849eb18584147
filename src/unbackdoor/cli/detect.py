"""`unbackdoor detect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from unbackdoor.cli.options import (
    Listing,
    announce,
    arch_option,
    download_option,
    emit,
    force_option,
    input_option,
    key_option,
    mean_option,
    part_and_file,
    part_option,
    quiet_option,
    std_option,
)


def _detectors() -> list[str]:
    from unbackdoor.detectors import DETECTORS

    return [f"{name} ({DETECTORS[name].title}, wants {DETECTORS[name].needs})" for name in DETECTORS]


@click.command(epilog="Exit codes: 0 no class is suspicious; 1 a class is; 2 error, or file refused.")
@click.argument("model")
@click.option(
    "--method",
    "method_text",
    required=True,
    cls=Listing,
    names=_detectors,
    help="NAMES; with settings as in nc:steps=200 (docs/defences.md).",
)
@click.option("--data", help="Data set: cifar10, ..., a data.toml, or a folder of images (docs/data.md).")
@click.option(
    "--images",
    type=float,
    default=0.05,
    show_default=True,
    help="Training images for the detector: a fraction up to 1, or a count.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Decides which images, and the detector's random choices."
)
@click.option(
    "--attack", "attack_text", help="Attack that poisons some of them: badnet, badnet:size=3, or an attack.json."
)
@click.option(
    "--poisoned", type=float, default=0.0, show_default=True, help="Share of the detector's images to poison (ac)."
)
@arch_option
@input_option
@mean_option
@std_option
@key_option
@part_option
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of the data sets ($UNBACKDOOR_DATA).")
@download_option
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("-o", "output", type=click.Path(path_type=Path), help="Write the findings to this file, not to stdout.")
@force_option
@quiet_option
def command(
    *,
    model: str,
    method_text: str,
    data: str | None,
    images: float,
    seed: int,
    attack_text: str | None,
    poisoned: float,
    arch: str | None,
    example: Any,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    key: str | None,
    part: str | None,
    device: str,
    data_dir: Path | None,
    download: bool,
    form: str,
    output: Path | None,
    force: bool,
    quiet: bool,
) -> int:
    """Look for a backdoor and its target class. Unlike scan, a method may need images (--data)."""
    from unbackdoor.api import detect
    from unbackdoor.atomic import check_target
    from unbackdoor.attacks import load_attack, parse_attack
    from unbackdoor.cli.progress import bar
    from unbackdoor.detectors import parse_detector

    part, output = part_and_file(part, output)
    detector = parse_detector(method_text)
    if output is not None:
        check_target(output, overwrite=force, inputs=[model])
    attack = None
    if attack_text is not None:
        attack = load_attack(attack_text) if attack_text.endswith(".json") else parse_attack(attack_text)
    announce(arch, quiet=quiet)
    with bar(detector.name, quiet=quiet) as update:
        found = detect(
            model,
            detector=detector,
            data=data,
            images=images,
            seed=seed,
            attack=attack,
            poisoned=poisoned,
            arch=arch,
            key=key,
            example=example,
            mean=mean,
            std=std,
            output=part,
            data_dir=data_dir,
            download=download,
            device=device,
            progress=update,
        )
    emit(found.to_text() if form == "text" else found.to_json(), output, overwrite=force)
    return 1 if found.suspicious else 0
