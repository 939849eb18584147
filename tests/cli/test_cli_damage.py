"""`unbackdoor diff --damage`, and `predict_damage` on files and on networks."""

import json
from pathlib import Path

import pytest
import torch

import unbackdoor
from cli_runs import PACKAGED, refuse, run
from unbackdoor.errors import MethodError, SettingError

pytestmark = pytest.mark.usefixtures("meter_unasked")


@pytest.fixture(scope="module")
def repaired(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("repaired") / "model.safetensors"
    assert run("repair", PACKAGED, "-o", target, "--quiet").code == 0
    return target


def test_a_repair_has_a_predicted_loss(repaired: Path) -> None:
    done = run("diff", PACKAGED, repaired, "--damage")
    assert done.code == 1
    assert "Predicted loss of accuracy: " in done.out
    assert "no image of the data was read" in done.out
    assert "(of the data set cifar10)" in done.out
    found = json.loads(run("diff", PACKAGED, repaired, "--damage", "--format", "json").out)["damage"]
    assert 0 <= found["low"] <= found["loss"] <= found["high"] <= 100
    assert len(found["recall"]) == 10
    same = run("diff", PACKAGED, PACKAGED, "--damage")
    assert same.code == 0
    assert "Predicted loss of accuracy: 0.0 points" in same.out


def test_networks_and_files_agree(repaired: Path) -> None:
    from_files = unbackdoor.predict_damage(PACKAGED, repaired, seed=3)
    models = [unbackdoor.load_model(path) for path in (PACKAGED, repaired)]
    before = [p.clone() for p in models[0].parameters()]
    from_models = unbackdoor.predict_damage(*models, data="cifar10", seed=3)
    assert from_models == from_files
    assert from_models.to_json() == from_files.to_json()
    assert all(torch.equal(p, old) for p, old in zip(models[0].parameters(), before, strict=True))
    assert from_files != unbackdoor.predict_damage(PACKAGED, repaired, seed=4)


def test_what_is_refused(repaired: Path) -> None:
    assert "--arch runs the networks: give --damage too" in refuse("diff", PACKAGED, repaired, "--arch", "resnet18")
    assert "unknown data set" in refuse("diff", PACKAGED, repaired, "--damage", "--data", "cifar")
    model = unbackdoor.load_model(PACKAGED)
    with pytest.raises(SettingError, match="expected two networks or two files, got ResNet and"):
        unbackdoor.predict_damage(model, repaired)
    with pytest.raises(MethodError, match="--input 3x32x32"):
        unbackdoor.predict_damage(model, model)
