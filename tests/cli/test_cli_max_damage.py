"""`--max-damage` of `repair` and `defend`: what is predicted, what is refused, and where nothing is known."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import unbackdoor
from cli_runs import refuse, run
from layer_zoo import calibrate
from unbackdoor import checkpoint
from unbackdoor.api import ARCH_KEY
from unbackdoor.defences.data_free.auto import THRESHOLDS
from unbackdoor.defences.data_free.best import Best
from unbackdoor.defender import meter
from unbackdoor.defender.case import Case
from unbackdoor.errors import DamageError, MethodError, SettingError
from unbackdoor.models import parse_arch
from unbackdoor.prune import Plan

ARCH = "resnet18:width=4,num_classes=4"
INPUT = ("--input", "3x8x8")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that names its network, which answers random images with several classes."""
    torch.manual_seed(0)
    model = parse_arch(ARCH).build()
    calibrate(model, torch.randn(64, 3, 8, 8))
    with torch.no_grad():
        model.fc.weight.mul_(20)
    path = tmp_path_factory.mktemp("in") / "in.safetensors"
    checkpoint.save(path, model.state_dict(), metadata={ARCH_KEY: ARCH})
    return path


@pytest.mark.usefixtures("meter_unasked")
def test_a_repair_shows_its_predicted_loss(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors"
    done = run("repair", source, "-o", output, *INPUT, "--max-damage", "100")
    assert done.code == 0
    found = json.loads(run("repair", source, "--dry-run", *INPUT, "--max-damage", "100", "--format", "json").out)
    damage = found["damage"]
    assert f"Predicted loss of accuracy: {damage['loss']:.1f} points (90 % of such losses: " in done.out
    assert (damage["images"], found["damage_unknown"]) == (20, "")
    assert damage["loss"] > 0
    again = run("diff", source, output, "--damage", *INPUT, "--format", "json")
    assert json.loads(again.out)["damage"] == damage  # the same images, so the same numbers
    page = run("repair", source, "--dry-run", *INPUT, "--max-damage", "100", "--format", "html").out
    assert f"Predicted loss of accuracy: {damage['loss']:.1f} points" in page
    sarif = json.loads(run("repair", source, "--dry-run", *INPUT, "--max-damage", "100", "--format", "sarif").out)
    assert sarif["runs"][0]["properties"]["predicted_loss"]["loss"] == damage["loss"]


@pytest.mark.usefixtures("meter_unasked")
@pytest.mark.parametrize("command", [("repair",), ("defend", "--method", "lpp:upper=0.5,lower=-0.5")])
def test_too_large_a_loss_is_refused(source: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    output = tmp_path / "out.safetensors"
    hard = ("--upper", "0.5", "--lower", "-0.5") if command == ("repair",) else ()
    words = (command[0], source, *command[1:], *hard, "-o", output, *INPUT)
    done = run(*words)
    assert done.code == 2
    assert "at most 3 are allowed, and nothing was written" in done.err
    assert "--max-damage" in done.err
    assert "Predicted loss of accuracy: " in done.out
    assert list(tmp_path.iterdir()) == []
    assert run(*words, "--max-damage", "100").code == 0
    assert run(*words, "--force").code == 0  # which replaces the file, and does not look at the limit
    if command == ("repair",):
        dry = run("repair", source, *hard, "--dry-run", *INPUT)
        assert dry.code == 2
        assert "at most 3 are allowed" in dry.err


@pytest.mark.parametrize("command", [("repair", "--method", "best"), ("defend", "--method", "best")])
@pytest.mark.parametrize(("words", "damage"), [(("--max-damage", "1"), 1), (("--max-damage", "none"), 3), ((), 3)])
def test_a_method_that_chooses_by_the_loss_knows_the_limit(
    source: Path,
    tmp_path: Path,
    command: tuple[str, ...],
    words: tuple[str, ...],
    damage: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[float] = []

    def plan_for(self: Best, _case: Case) -> Plan:
        asked.append(self.damage)
        raise MethodError("no more is needed here")

    monkeypatch.setattr(Best, "plan_for", plan_for)
    done = run(command[0], source, *command[1:], "-o", tmp_path / "out.safetensors", *INPUT, *words)
    assert (done.code, asked) == (2, [damage])


@pytest.mark.usefixtures("meter_unasked")
def test_in_python(source: Path, tmp_path: Path) -> None:
    output, example = tmp_path / "out.safetensors", torch.zeros(1, 3, 8, 8)
    hard = unbackdoor.LPP(upper=0.5, lower=-0.5)
    with pytest.raises(DamageError, match=r"predicted loss of accuracy: .* points .*; at most 3 are allowed") as caught:
        unbackdoor.repair(source, output, method=hard, example=example)
    assert caught.value.report.action == "plan"
    assert caught.value.report.damage.loss > 3
    assert not output.exists()
    report = unbackdoor.repair(source, output, method=hard, example=example, max_damage=math.inf)
    assert report.damage == caught.value.report.damage
    assert unbackdoor.repair(source, method=hard, example=example, max_damage=None, dry_run=True).damage is None
    for wrong in (-1.0, math.nan, True, "3"):
        with pytest.raises(SettingError, match="max_damage: expected points of accuracy from 0, or None"):
            unbackdoor.repair(source, output, max_damage=wrong, overwrite=True)  # type: ignore[arg-type]


@pytest.mark.usefixtures("meter_unasked")
def test_where_the_loss_is_not_known(
    source: Path, tmp_path: Path, tiny_net: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report says why, and the repair goes on."""

    def why(path: Path, *words: object) -> str:
        output = tmp_path / "out.safetensors"
        done = run("repair", path, "-o", output, "--upper", "0.5", "--format", "json", *words)
        assert done.code == 0
        output.unlink()
        found = json.loads(done.out)
        assert found["damage"] is None
        return found["damage_unknown"]

    assert "the size of the images" in why(source)
    unnamed = tmp_path / "unnamed.pt"
    checkpoint.save(unnamed, tiny_net(channels=16).state_dict())
    assert "give the network with --arch" in why(unnamed)
    assert why(source, *INPUT, "--max-damage", "none") == ""
    assert why(source, *INPUT, "--upper", "inf", "--lower", "-inf", "--fc-weights", "0") == "nothing is changed"
    monkeypatch.setattr(meter, "LONGEST", 1.0)
    assert "the network is large" in why(source, *INPUT)
    text = run("repair", source, "--dry-run", *INPUT).out
    assert "Loss of accuracy: not predicted, because the network is large" in " ".join(text.split())


@pytest.mark.usefixtures("meter_unasked")
def test_a_budget_chooses_the_thresholds(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors"
    done = run("repair", source, "-o", output, *INPUT, "--method", "clp", "--budget", "2", "--format", "json")
    assert done.code == 0
    found = json.loads(done.out)
    assert found["damage"]["loss"] <= 2
    assert found["settings"]["budget"] == 2
    assert found["settings"]["u"] in THRESHOLDS
    defended = run("defend", source, "-o", output, "--force", *INPUT, "--method", "clp:budget=2", "--format", "json")
    assert json.loads(defended.out)["settings"] == found["settings"]
    assert "the size of the images" in refuse("repair", source, "-o", output, "--force", "--budget", "2")


def test_words_that_are_no_limit(source: Path, tmp_path: Path) -> None:
    for word in ("-1", "nan", "some"):
        assert "--max-damage: expected points of accuracy from 0, or none" in refuse(
            "repair", source, "-o", tmp_path / "out.pt", "--max-damage", word
        )


@pytest.mark.usefixtures("meter_unasked")
def test_the_images_size_and_normalisation_can_be_told(source: Path) -> None:
    def notes(*words: str) -> str:
        done = run("repair", source, "--dry-run", *words, "--max-damage", "100", "--format", "json")
        return " ".join(json.loads(done.out)["damage"]["notes"])

    assert "given" in notes(*INPUT, "--mean", "0.5", "--std", "0.25")
    assert "CIFAR-10" in notes("--data", "cifar10") or "cifar10" in notes("--data", "cifar10")
    assert notes(*INPUT, "--mean", "0.5", "--std", "0.25") != notes(*INPUT)
    assert "mean" in refuse("repair", source, "--dry-run", *INPUT, "--std", "0.25")
    assert "nothing_known" in refuse("repair", source, "--dry-run", "--data", "nothing_known")
