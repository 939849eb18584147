"""Attacks on disk: what is loaded stamps the same bytes, and nothing else is taken for it."""

import json
from pathlib import Path

import pytest
import torch
from prepared_attacks import NAMES, arm, data_of

from unbackdoor import checkpoint
from unbackdoor.attacks import load_attack, save_attack
from unbackdoor.errors import SettingError

WITH_TRIGGER = [name for name in NAMES if name not in ("badnet", "sig", "bpp", "lc")]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [32, 64])
def test_a_loaded_attack_stamps_the_same_bytes(tmp_path: Path, name: str, size: int) -> None:
    attack = arm(name, size, target=1)
    save_attack(attack, tmp_path)
    assert (tmp_path / "attack.safetensors").exists() == (name in WITH_TRIGGER)
    loaded = load_attack(tmp_path / "attack.json")
    images = data_of(size, seed=8).images
    assert loaded == attack
    assert torch.equal(loaded.stamp(images), attack.stamp(images))
    (tmp_path / "again").mkdir()
    save_attack(loaded, tmp_path / "again")
    assert {f.name: f.read_bytes() for f in (tmp_path / "again").iterdir()} == {
        f.name: f.read_bytes() for f in tmp_path.iterdir() if f.is_file()
    }


@pytest.mark.parametrize("name", WITH_TRIGGER)
def test_another_trigger_is_refused(tmp_path: Path, name: str) -> None:
    save_attack(arm(name), tmp_path)
    (tmp_path / "other").mkdir()
    save_attack(arm(name, seed=1), tmp_path / "other")
    (tmp_path / "other" / "attack.safetensors").replace(tmp_path / "attack.safetensors")
    with pytest.raises(SettingError, match=r"is not the trigger that attack\.json was saved with"):
        load_attack(tmp_path / "attack.json")


def test_one_changed_byte_is_refused(tmp_path: Path) -> None:
    save_attack(arm("blended"), tmp_path)
    trigger = tmp_path / "attack.safetensors"
    content = bytearray(trigger.read_bytes())
    content[-1] ^= 1
    trigger.write_bytes(bytes(content))
    with pytest.raises(SettingError, match="SHA-256 differs"):
        load_attack(tmp_path / "attack.json")


@pytest.mark.parametrize("content", [None, b"", b"garbage", b"\xff" * 8])
def test_a_missing_or_damaged_trigger_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    save_attack(arm("wanet"), tmp_path)
    (tmp_path / "attack.safetensors").unlink()
    if content is not None:
        (tmp_path / "attack.safetensors").write_bytes(content)
    with pytest.raises(SettingError, match="its trigger cannot be read") as error:
        load_attack(tmp_path / "attack.json")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("digest", [0, None, [], {}, "", "0" * 64])
def test_a_digest_that_is_none(tmp_path: Path, digest: object) -> None:
    """Without one there is no trigger: stamping says so."""
    save_attack(arm("blended"), tmp_path)
    record = json.loads((tmp_path / "attack.json").read_text())
    (tmp_path / "attack.json").write_text(json.dumps({**record, "trigger_sha256": digest}))
    if digest is None:
        with pytest.raises(SettingError, match="its trigger is not in its settings"):
            load_attack(tmp_path / "attack.json").stamp(data_of().images)
    else:
        with pytest.raises(SettingError, match="is not the trigger"):
            load_attack(tmp_path / "attack.json")


def test_the_trigger_of_another_attack(tmp_path: Path) -> None:
    """Someone edited the name: no part of what it needs is there."""
    save_attack(arm("blended"), tmp_path)
    text = (tmp_path / "attack.json").read_text().replace('"blended"', '"wanet"').replace('"alpha": 0.2', '"s": 0.5')
    (tmp_path / "attack.json").write_text(text)
    with pytest.raises(SettingError, match="wanet: its trigger is not in its settings"):
        load_attack(tmp_path / "attack.json").stamp(data_of().images)


def test_a_surrogate_is_never_saved(tmp_path: Path) -> None:
    save_attack(arm("lc"), tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["attack.json"]


def test_settings_never_speak_of_a_trigger_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_attack(arm("blended"), tmp_path)
    assert list(tmp_path.iterdir()) == []
