"""A whole run on random images: what is in its folder, and what is refused before anything starts."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unbackdoor import checkpoint
from unbackdoor.attacks import load_attack, parse_attack, read_attack
from unbackdoor.attacks.badnets import BadNets
from unbackdoor.data import DATASETS, LabelledImages
from unbackdoor.errors import ArchitectureError, CheckpointError, OutputError, SettingError
from unbackdoor.metrics import Evaluation
from unbackdoor.models import parse_arch
from unbackdoor.train import Epoch, Recipe, Run, check_run, measure, train_run

SPEC = DATASETS["cifar10"]
RECIPE = Recipe(name="tiny", epochs=2, lr=0.05, batch_size=16)
RUN = Run(arch=parse_arch("resnet18:width=2"), recipe=RECIPE, attack=BadNets(target=3), rate=0.25, command="as typed")


def _images(n: int, seed: int) -> LabelledImages:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return LabelledImages(images, torch.arange(n) % 10, SPEC)


TRAIN, TEST = _images(32, 1), _images(20, 2)


def _weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


class Killed(Exception):
    pass


def _killed(epoch: Epoch, watched: Evaluation | None) -> None:
    raise Killed


def _rebuilt(folder: Path) -> torch.nn.Module:
    saved = checkpoint.load(folder / "model.safetensors")
    model = parse_arch(saved.metadata["unbackdoor.arch"]).build()
    model.load_state_dict(dict(saved.tensors))
    return model


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "deep" / "er"
    train_run(RUN, TRAIN, TEST, folder)
    return folder


def test_the_folder_of_a_finished_run(finished: Path) -> None:
    assert sorted(f.name for f in finished.iterdir()) == [
        "attack.json",
        "log.jsonl",
        "model.safetensors",
        "record.json",
    ]
    record = json.loads((finished / "record.json").read_text())
    assert record["schema_version"] == 1
    assert record["command"] == "as typed"
    assert record["arch"] == "resnet18:width=2,num_classes=10"
    assert record["poisoned_images"] == 8  # a quarter of 32
    assert record["data"] == {"name": "cifar10", "train_images": 32, "test_images": 20}
    assert record["result"]["acc"]["total"] == 20
    assert record["result"]["asr"]["total"] == record["result"]["ra"]["total"] == 18  # two are of class 3
    assert read_attack(json.loads((finished / "attack.json").read_text())) == RUN.attack
    log = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert [line["number"] for line in log] == [1, 2]


def test_what_was_stored_is_what_was_measured(finished: Path) -> None:
    record = json.loads((finished / "record.json").read_text())
    model = _rebuilt(finished)
    assert sum(p.numel() for p in model.parameters()) == record["parameters"]
    assert measure(model, TEST, RUN.attack).to_dict() == record["result"]


def test_the_same_settings_give_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)
    train_run(RUN, TRAIN, TEST, tmp_path)
    assert _weights(tmp_path) == _weights(finished)


def test_the_global_generator_is_not_touched(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    train_run(replace(RUN, recipe=replace(RECIPE, epochs=1)), TRAIN, TEST, tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("change", [{"seed": 1}, {"rate": 0.5}, {"attack": None}])
def test_other_settings_give_other_bytes(finished: Path, tmp_path: Path, change: dict) -> None:
    train_run(replace(RUN, **change), TRAIN, TEST, tmp_path)
    assert _weights(tmp_path) != _weights(finished)


def test_killed_and_resumed_is_undisturbed(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train_run(RUN, TRAIN, TEST, tmp_path, on_epoch=_killed)
    assert not (tmp_path / "model.safetensors").exists()
    epochs: list[int] = []
    train_run(RUN, TRAIN, TEST, tmp_path, on_epoch=lambda epoch, _: epochs.append(epoch.number))
    assert epochs == [2]
    assert _weights(tmp_path) == _weights(finished)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2
    assert not (tmp_path / "resume.pt").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"rate": 0.5},
        {"attack": BadNets(target=4)},
        {"attack": BadNets(target=3, flat_norms=0.1)},  # the same images, another loss
        {"attack": None},
        {"seed": 1},
    ],
)
def test_a_stopped_run_does_not_go_on_with_other_settings(tmp_path: Path, change: dict) -> None:
    with pytest.raises(Killed):
        train_run(RUN, TRAIN, TEST, tmp_path, on_epoch=_killed)
    with pytest.raises(CheckpointError, match="belongs to another run"):
        train_run(replace(RUN, **change), TRAIN, TEST, tmp_path)


STATEFUL = ["wanet:target=1", "bpp:target=1", "inputaware:target=1", "blended:target=1", "badnet:flat_norms=0.5"]


@pytest.mark.parametrize("text", STATEFUL)
def test_any_attack_killed_and_resumed_is_undisturbed(tmp_path: Path, text: str) -> None:
    """The same bytes of the network, of the trigger and of what is measured."""
    run = replace(RUN, attack=parse_attack(text), recipe=replace(RECIPE, epochs=3))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    record = train_run(run, TRAIN, TEST, whole)
    for _ in range(2):
        with pytest.raises(Killed):
            train_run(run, TRAIN, TEST, parts, on_epoch=_killed)
    again = train_run(run, TRAIN, TEST, parts)
    for file in ("model.safetensors", "attack.json", "attack.safetensors"):
        assert (parts / file).exists() == (whole / file).exists()
        if (whole / file).exists():
            assert (parts / file).read_bytes() == (whole / file).read_bytes()
    assert again["result"] == record["result"]
    assert measure(_rebuilt(whole), TEST, load_attack(whole / "attack.json")).to_dict() == record["result"]


@pytest.mark.parametrize("text", ["wanet", "bpp", "inputaware"])
def test_a_stopped_run_of_a_controlled_training_does_not_go_on_with_another(tmp_path: Path, text: str) -> None:
    run = replace(RUN, attack=parse_attack(text))
    with pytest.raises(Killed):
        train_run(run, TRAIN, TEST, tmp_path, on_epoch=_killed)
    for change in ({"attack": parse_attack(text, target=2)}, {"rate": 0.5}, {"attack": None}):
        with pytest.raises(CheckpointError, match="belongs to another run"):
            train_run(replace(run, **change), TRAIN, TEST, tmp_path)


def test_the_record_of_a_controlled_training_counts_no_images(tmp_path: Path) -> None:
    run = replace(RUN, attack=parse_attack("bpp"), recipe=replace(RECIPE, epochs=1))
    assert train_run(run, TRAIN, TEST, tmp_path)["poisoned_images"] is None


def test_a_clean_label_attack_with_its_surrogate(tmp_path: Path) -> None:
    run = replace(RUN, attack=parse_attack("lc:steps=2", target=3), rate=0.5, recipe=replace(RECIPE, epochs=1))
    classifier = parse_arch("resnet18:width=2").build()
    told: list[tuple[int, int]] = []
    record = train_run(
        replace(run, surrogate="clean.safetensors"), TRAIN, TEST, tmp_path,
        classifier=classifier, on_prepare=lambda *steps: told.append(steps),
    )  # fmt: skip
    assert told == [(1, 2), (2, 2)]
    assert record["surrogate"] == "clean.safetensors"
    # Of 32 images three have class 3: the cap is said.
    assert record["poisoned_images"] == 3
    assert record["note"] == "lc: only 3 of 32 training images have class 3; the rate is 0.0938 instead of 0.5"
    assert sorted(f.name for f in tmp_path.iterdir()) == [
        "attack.json",
        "log.jsonl",
        "model.safetensors",
        "record.json",
    ]


def test_all_to_all_is_measured_as_it_was_asked_for(tmp_path: Path) -> None:
    run = replace(RUN, attack=BadNets(mapping="all-to-all"), recipe=replace(RECIPE, epochs=1))
    record = train_run(run, TRAIN, TEST, tmp_path)
    assert record["result"]["asr"]["total"] == 20  # every image is of another class than is asked for it
    assert record["attack"]["mapping"] == "all-to-all"


def test_watched_rates_are_told_and_logged_and_change_nothing(finished: Path, tmp_path: Path) -> None:
    seen: list[Evaluation] = []

    def on_epoch(epoch: Epoch, watched: Evaluation | None) -> None:
        assert watched is not None
        seen.append(watched)

    train_run(replace(RUN, watch=10), TRAIN, TEST, tmp_path, on_epoch=on_epoch)
    assert [(e.acc.total, e.asr.total) for e in seen if e.asr is not None] == [(10, 9), (10, 9)]
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["watched"] for line in log] == [e.to_dict() for e in seen]
    assert _weights(tmp_path) == _weights(finished)


def test_killed_between_network_and_record_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = checkpoint.save

    def save_and_die(*args: object, **options: object) -> None:
        save(*args, **options)
        raise Killed

    monkeypatch.setattr(checkpoint, "save", save_and_die)
    with pytest.raises(Killed):
        train_run(RUN, TRAIN, TEST, tmp_path)
    monkeypatch.undo()
    train_run(RUN, TRAIN, TEST, tmp_path)
    assert (tmp_path / "record.json").exists()


def test_a_finished_run_is_not_replaced_unasked(finished: Path) -> None:
    before = {file.name: file.read_bytes() for file in finished.iterdir()}
    with pytest.raises(OutputError, match="holds a finished run and is left as it is; use --force"):
        train_run(replace(RUN, seed=5), TRAIN, TEST, finished)
    assert {file.name: file.read_bytes() for file in finished.iterdir()} == before


def test_a_strangers_network_is_not_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    with pytest.raises(OutputError, match="left as it is"):
        train_run(RUN, TRAIN, TEST, tmp_path)
    assert _weights(tmp_path) == b"mine"


def test_overwriting_leaves_nothing_of_the_old_run(tmp_path: Path) -> None:
    short = replace(RUN, recipe=replace(RECIPE, epochs=1))
    train_run(short, TRAIN, TEST, tmp_path)
    train_run(replace(short, attack=None), TRAIN, TEST, tmp_path, overwrite=True)
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["attack"] is None
    assert (record["result"]["asr"], record["poisoned_images"]) == (None, 0)
    assert not (tmp_path / "attack.json").exists()
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_measured_as_stored(tmp_path: Path, dtype: str) -> None:
    run = replace(RUN, dtype=dtype, recipe=replace(RECIPE, epochs=1))
    record = train_run(run, TRAIN, TEST, tmp_path)
    model = _rebuilt(tmp_path).to(getattr(torch, dtype))
    stored = checkpoint.load(tmp_path / "model.safetensors").tensors
    assert stored["conv1.weight"].dtype == getattr(torch, dtype)
    assert stored["bn1.num_batches_tracked"].dtype == torch.int64
    assert measure(model, TEST, run.attack).to_dict() == record["result"]
    assert next(model.parameters()).dtype == getattr(torch, dtype)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"dtype": "int8"}, SettingError, "dtype: expected one of float32, bfloat16, float16, got 'int8'"),
        ({"device": "cuda:99"}, SettingError, "device 'cuda:99' cannot be used here"),
        ({"device": "meta"}, SettingError, "device 'meta' cannot be used here"),
        ({"device": "toaster"}, SettingError, "device 'toaster' cannot be used here"),
        ({"rate": float("nan")}, SettingError, "poison rate: expected a share between 0 and 1, got nan"),
        ({"rate": 1.5}, SettingError, "poison rate"),
        ({"seed": -1}, SettingError, "seed: expected 0 to 4294967295, got -1"),
        ({"seed": 2**64}, SettingError, "seed: expected"),
        ({"attack": BadNets(target=10)}, SettingError, "target: expected one of the classes 0 to 9, got 10"),
        ({"attack": BadNets(target=-1)}, SettingError, "got -1"),
        ({"attack": BadNets(size=33)}, SettingError, "33x33 patch does not fit"),
        ({"attack": parse_attack("lc")}, SettingError, "needs a clean network of CIFAR-10 first.*--surrogate"),
        ({"arch": parse_arch("resnet18:num_classes=7")}, SettingError, "CIFAR-10 has 10 classes, not 7"),
        ({"arch": parse_arch("resnet18:width=0")}, ArchitectureError, "width: expected a whole number"),
        ({"arch": parse_arch("no/such/file.py:build")}, ArchitectureError, "there is no file"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    tmp_path: Path, change: dict, error: type[Exception], message: str
) -> None:
    for call in (
        lambda run: check_run(run, SPEC, tmp_path / "out"),
        lambda run: train_run(run, TRAIN, TEST, tmp_path / "out"),
    ):
        with pytest.raises(error, match=message):
            call(replace(RUN, **change))
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(OutputError, match="no folder that may be written to"):
            check_run(RUN, SPEC, place)


def test_too_small_a_rate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="poisons none"):
        train_run(replace(RUN, rate=0.001), TRAIN, TEST, tmp_path)
