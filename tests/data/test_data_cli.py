"""A user's own images, from the command line: a network is trained on them and measured."""

import json
from pathlib import Path

import numpy as np
import pytest
from made_images import write

from unbackdoor.cli import main


def _main(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["unbackdoor", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def test_train_and_evaluate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val"):
        for label, name in enumerate(("dark", "grey", "light")):
            for i in range(4):
                write(tmp_path / "shades" / split / name / f"{i}.png", np.full((20, 30, 3), 100 * label + i, np.uint8))
    (tmp_path / "data.toml").write_text('shades = { folder = "shades", size = 16 }\n')
    data, out = str(tmp_path / "data.toml"), tmp_path / "out"
    words = ["--data", data, "--arch", "resnet18:width=4", "--epochs", "1", "-o", str(out)]
    assert _main(monkeypatch, "train", *words) == 0
    said, err = capsys.readouterr()
    assert " of 12)" in said
    assert "24 of 24 images were resized to 16x16 pixels" in err
    assert json.loads((out / "record.json").read_text())["data"]["name"] == "shades"
    assert _main(monkeypatch, "evaluate", str(out / "model.safetensors"), "--data", f"{data}:shades") == 0
    assert " of 12)" in capsys.readouterr().out


def test_a_name_that_is_nothing_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "--data", "birds", "--arch", "resnet18", "-o", str(tmp_path / "out")]
    assert _main(monkeypatch, *words) == 2
    err = capsys.readouterr().err
    assert err.startswith(
        "unbackdoor: unknown data set 'birds': expected one of cifar10, cifar100, gtsrb, tiny_imagenet; or "
    )
    assert err.count("\n") == 1
