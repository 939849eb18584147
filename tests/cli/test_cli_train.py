"""`unbackdoor train`: what is typed wrong is said before data are read; a small run from end to end."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from unbackdoor import cli
from unbackdoor.attacks import ATTACKS
from unbackdoor.cli.train import _without_paths
from unbackdoor.defences.table import DEFENCES, PRESETS
from unbackdoor.train import RECIPES


def _main(*words: str) -> int:
    argv, sys.argv = sys.argv, ["unbackdoor", *words]
    try:
        with pytest.raises(SystemExit) as caught:
            cli.main()
    finally:
        sys.argv = argv
    return int(caught.value.code or 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--data cifar11", "unknown data set 'cifar11': did you mean 'cifar10'"),
        ("--arch resnet99", "unknown network 'resnet99'"),
        ("--arch resnet18:widht=16", "widht"),
        ("--arch resnet18:width=0", "width: expected a whole number from 1, got 0"),
        ("--arch no/such.py:build", "there is no file no/such.py"),
        ("--attack badnets", "unknown attack 'badnets': did you mean 'badnet'"),
        ("--attack badnet:size=33", "33x33 patch does not fit"),
        ("--attack badnet:size=3,size=4", "size is given twice"),
        ("--attack badnet --target 11", "target: expected one of the classes 0 to 9, got 11"),
        ("--attack badnet --target -1", "got -1"),
        ("--attack badnet:target=2 --target 3", "attack 'badnet:target=2': its target is 2, not 3; leave out --target"),
        ("--attack badnet --surrogate missing.pt", "attack badnet needs no clean network; leave out --surrogate"),
        ("--attack lc --surrogate missing.pt --device toaster", "device 'toaster' cannot be used here"),
        ("--attack badnet:flat_norms=0.5 --arch vgg19:width=1", "flat_norms: expected a network with a BatchNorm"),
        ("--watch -5", "watch: expected 0 or more test images, got -5"),
        ("--attack badnet --rate nan", "poison rate: expected a share between 0 and 1, got nan"),
        ("--attack badnet --rate 10", "poison rate: expected a share between 0 and 1, got 10"),
        ("--rate much", "Invalid value for '--rate': 'much' is not a valid float"),
        ("--recipe slow", "unknown recipe 'slow'"),
        ("--epochs 0", "epochs: expected a whole number of at least 1, got 0"),
        ("--epochs 1.5", "Invalid value for '--epochs'"),
        ("--seed -1", "seed: expected a number from 0 to"),
        ("--dtype int8", "dtype: expected one of float32, bfloat16, float16, got 'int8'"),
        ("--device toaster", "device 'toaster' cannot be used here"),
        ("--device cuda:99", "device 'cuda:99' cannot be used here"),
        ("--nothing", "No such option"),
        ("more", "unexpected extra argument"),
    ],
)
def test_one_line_before_data_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, words: str, message: str
) -> None:
    monkeypatch.setattr("unbackdoor.data.load_dataset", lambda *_, **__: pytest.fail("data were read"))
    good = ["--data", "cifar10", "--arch", "resnet18:width=2", "-o", str(tmp_path / "out")]
    assert _main("train", *good, *words.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["--data", "--arch", "-o"])
def test_a_missing_option_is_named(capsys: pytest.CaptureFixture, missing: str) -> None:
    good = {"--data": "cifar10", "--arch": "resnet18", "-o": "out"}
    words = [word for option, value in good.items() if option != missing for word in (option, value)]
    assert _main("train", *words) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert missing in err


def test_data_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["--data", "cifar10", "--arch", "resnet18:width=2", "-o", str(tmp_path / "out")]
    assert _main("train", *words, "--data-dir", str(tmp_path)) == 2
    err = capsys.readouterr().err
    assert "CIFAR-10 was not found" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_option_that_says_no_words_out_of_the_help() -> None:
    result = CliRunner().invoke(cli.cli, ["train", "--help"])
    assert result.exit_code == 0
    assert {"--data", "--arch", "--attack", "--rate", "--output", "--force"} <= set(
        result.output.replace(",", " ").split()
    )


@pytest.mark.parametrize("command", ["train", "defend", "detect"])
def test_help_names_what_is_registered(command: str) -> None:
    text = CliRunner().invoke(cli.cli, [command, "--help"]).output
    words = "".join(text.split())  # names are broken at hyphens
    listed = {"train": (ATTACKS, RECIPES), "defend": (DEFENCES, PRESETS), "detect": ()}[command]
    assert [names for names in listed if ",".join(names) not in words] == []
    assert "nc(NeuralCleanse,wantscleanimages)" in words or command != "detect"


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("train --data cifar10 -o /home/me/out", "train --data cifar10"),
        ("train -o/home/me/out --seed 3", "train --seed 3"),
        ("train --output=/x --data-dir=/y --force", "train --force"),
        ("train --data-dir /y --output /x --data cifar10", "train --data cifar10"),
        ("train --surrogate /home/me/a.safetensors --seed 3", "train --surrogate a.safetensors --seed 3"),
        ("train --surrogate=/home/me/a.safetensors", "train --surrogate=a.safetensors"),
    ],
)
def test_the_recorded_command_names_no_folder(words: str, kept: str) -> None:
    assert _without_paths(words.split()) == kept.split()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A CIFAR-10 of 40 random training images and 20 test images."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    image = pytest.importorskip("PIL.Image")
    random = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 20)):
        rows = []
        for _ in range(count):
            stream = io.BytesIO()
            image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(stream, "PNG")
            rows.append({"bytes": stream.getvalue(), "path": None})
        table = pa.table({"img": rows, "label": [i % 10 for i in range(count)]})
        pq.write_table(table, tmp_path / f"{split}-00000-of-00001.parquet")
    return tmp_path


def test_a_small_run_from_end_to_end(data: Path, capsys: pytest.CaptureFixture) -> None:
    out = data / "out"
    words = (
        f"train --data cifar10 --data-dir {data} --arch resnet18:width=2 --attack badnet --epochs 1 -o {out}".split()
    )
    assert _main(*words) == 0
    said, err = capsys.readouterr()
    record = json.loads((out / "record.json").read_text())
    assert said.startswith(f"{out}: ACC ")
    assert f"ACC {record['result']['acc']['value']:.2%} ({record['result']['acc']['hits']} of 20)" in said
    assert "of 18)" in said  # ASR and RA without the two images of class 0
    assert "epoch 1/1" in err
    assert str(data) not in record["command"]
    assert record["poisoned_images"] == 4
    before = (out / "model.safetensors").read_bytes()
    assert _main(*words, "--seed", "1") == 2
    assert "use --force" in capsys.readouterr().err
    assert (out / "model.safetensors").read_bytes() == before
    assert _main(*words, "--seed", "1", "--force", "--quiet") == 0
    said, err = capsys.readouterr()
    assert (said.count("\n"), err) == (1, "")
    assert (out / "model.safetensors").read_bytes() != before


def test_as_a_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from unbackdoor.cli import main; main()", "train", "--data", "cifar10"]
    command += ["--arch", "resnet18", "--attack", "badnet", "--target", "11", "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "unbackdoor: target: expected one of the classes 0 to 9, got 11\n"
