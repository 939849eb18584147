"""A whole run on random images: what is in its folder, and what is refused before anything starts."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unbackdoor import checkpoint
from unbackdoor.api.training import Run, check_run, train_run
from unbackdoor.attacks import load_attack, parse_attack, read_attack
from unbackdoor.attacks.badnets import BadNets
from unbackdoor.data import DATASETS, LabelledImages
from unbackdoor.errors import ArchitectureError, CheckpointError, OutputError, SettingError
from unbackdoor.findings import Evaluation
from unbackdoor.metrics import measure
from unbackdoor.models import parse_arch
from unbackdoor.train import Epoch, Recipe

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
    assert record["attacked_per_batch"] is None
    assert record["data"] == {"name": "cifar10", "train_images": 32, "test_images": 20, "resized": 0}
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


@pytest.mark.parametrize(("rate", "each"), [(0.25, 4), (0.05, pytest.approx(0.8))])
def test_the_record_of_a_controlled_training_counts_images_a_batch(tmp_path: Path, rate: float, each: float) -> None:
    run = replace(RUN, attack=parse_attack("bpp"), recipe=replace(RECIPE, epochs=1), rate=rate)
    record = train_run(run, replace(TRAIN, resized=3), replace(TEST, resized=2), tmp_path)
    assert (record["poisoned_images"], record["attacked_per_batch"], record["data"]["resized"]) == (None, each, 5)


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

    by_class = TEST[TEST.labels.argsort(stable=True)]  # as class folders are read
    train_run(replace(RUN, watch=10), TRAIN, by_class, tmp_path, on_epoch=on_epoch)
    assert [e.acc.total for e in seen] == [10, 10]
    assert all(6 <= e.asr.total < 10 for e in seen if e.asr is not None)  # not the first ones, which are of few classes
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


def test_killed_before_the_log_is_written_loses_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        raise Killed

    monkeypatch.setitem(train_run.__globals__, "write_log", die)
    with pytest.raises(Killed):
        train_run(replace(RUN, watch=5), TRAIN, TEST, tmp_path)
    monkeypatch.undo()
    train_run(replace(RUN, watch=5), TRAIN, TEST, tmp_path)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["number"], line["watched"]["acc"]["total"]) for line in log] == [(1, 5), (2, 5)]


def test_an_old_run_stays_whole_until_the_new_one_replaces_it(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    other = replace(RUN, seed=4)
    with pytest.raises(Killed):
        train_run(other, TRAIN, TEST, folder, overwrite=True, on_epoch=_killed)
    during = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert during.keys() - before.keys() == {"resume.pt", "resume.jsonl"}
    assert {name: during[name] for name in before} == before
    with pytest.raises(OutputError, match="holds a finished run"):
        train_run(other, TRAIN, TEST, folder)
    epochs: list[int] = []
    train_run(other, TRAIN, TEST, folder, overwrite=True, on_epoch=lambda epoch, _: epochs.append(epoch.number))
    assert epochs == [2]
    after = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in ("model.safetensors", "record.json", "log.jsonl"))


def test_a_stopped_run_with_other_settings_is_replaced_if_asked_for(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train_run(RUN, TRAIN, TEST, tmp_path, on_epoch=_killed)
    other = replace(RUN, seed=4, attack=BadNets(target=4))
    with pytest.raises(CheckpointError, match=r"another run \(different seed, attack, training images\)"):
        train_run(other, TRAIN, TEST, tmp_path)
    epochs: list[int] = []
    train_run(other, TRAIN, TEST, tmp_path, overwrite=True, on_epoch=lambda epoch, _: epochs.append(epoch.number))
    assert epochs == [1, 2]


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    """The second is refused while the first is at work, and not when it was killed."""
    code = "import sys, pathlib, time; from unbackdoor.lock import locked\n"
    code += "with locked(pathlib.Path(sys.argv[1])): print('in', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(
            OutputError, match="another run is using this folder; wait until it ends, or choose another folder"
        ):
            train_run(RUN, TRAIN, TEST, tmp_path)
        other.kill()
    assert [file.name for file in tmp_path.iterdir()] == [".lock"]
    train_run(RUN, TRAIN, TEST, tmp_path)
    assert not (tmp_path / ".lock").exists()


def test_a_result_that_finds_no_room_is_one_line_that_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: object) -> None:
        raise OutputError(f"{path}: cannot be written: No space left on device")

    monkeypatch.setitem(train_run.__globals__, "write_log", full)
    with pytest.raises(
        OutputError, match=r"jsonl: cannot be written: No space .*; fix that, and run the same command again"
    ):
        train_run(RUN, TRAIN, TEST, tmp_path)


def test_weights_that_the_stored_type_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def overgrown(model: torch.nn.Module, *_: object, **__: object) -> list[Epoch]:
        model.state_dict()["fc.weight"].fill_(1e5)
        return []

    monkeypatch.setitem(train_run.__globals__, "fit", overgrown)
    with pytest.raises(SettingError, match="dtype: float16 cannot hold all the weights"):
        train_run(replace(RUN, dtype="float16"), TRAIN, TEST, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_is_not_replaced_unasked(finished: Path) -> None:
    before = {file.name: file.read_bytes() for file in finished.iterdir()}
    with pytest.raises(OutputError, match="already holds a finished run, which was not changed; use --force"):
        train_run(replace(RUN, seed=5), TRAIN, TEST, finished)
    assert {file.name: file.read_bytes() for file in finished.iterdir()} == before


def test_a_strangers_network_is_not_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    with pytest.raises(OutputError, match="was not changed"):
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
        ({"seed": -1}, SettingError, "seed: expected a number from 0 to 4294967295, got -1"),
        ({"seed": 2**64}, SettingError, "seed: expected"),
        ({"attack": BadNets(target=10)}, SettingError, "target: expected one of the classes 0 to 9, got 10"),
        ({"attack": BadNets(target=-1)}, SettingError, "got -1"),
        ({"attack": BadNets(size=33)}, SettingError, "33x33 patch does not fit"),
        ({"attack": parse_attack("lc")}, SettingError, "needs a clean network of CIFAR-10: train one.*--surrogate"),
        ({"attack": parse_attack("sig:frequency=16")}, SettingError, "is 0 in all 32 columns"),
        ({"watch": -1}, SettingError, "watch: expected 0 or more test images, got -1"),
        ({"surrogate": "clean.pt"}, SettingError, "attack badnet needs no clean network; leave out --surrogate"),
        ({"surrogate": "clean.pt", "attack": None}, SettingError, "a clean training needs no clean network"),
        (
            {"attack": BadNets(flat_norms=0.1), "arch": parse_arch("vgg19:width=1")},
            SettingError,
            "flat_norms: expected a network with a BatchNorm",
        ),
        ({"arch": parse_arch("resnet18:num_classes=7")}, ArchitectureError, "has 10 classes, not 7"),
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


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("x", r"expected logits of shape \(2, classes\) for two images, got a tensor \(2, 3, 32, 32\)"),
        ("(x, x) if self.training else x.mean((2, 3))", "expected the 10 classes of CIFAR-10, got 3"),
        (
            "(logits, x) if self.training else logits",
            r"for two images in training, got a tuple of 0 \(2, 10\), 1 \(2, 3, 32, 32\)",
        ),
        ("logits[:, :, None]", r"got a tensor \(2, 10, 1\)"),
        ("logits[0]", r"got a tensor \(10,\)"),
        ("logits.view(2, 7)", "cannot process the 32x32 images of CIFAR-10: shape .* is invalid"),
    ],
)
def test_a_network_that_does_not_answer_with_logits(tmp_path: Path, returned: str, message: str) -> None:
    code = f"""
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(3, 10)

    def forward(self, x):
        logits = self.fc(x.mean((2, 3)))
        return {returned}

def build(num_classes):
    return Net()
"""
    (tmp_path / "net.py").write_text(code)
    arch = parse_arch(f"{tmp_path}/net.py:build")
    with pytest.raises(ArchitectureError, match=rf"^--arch {re.escape(str(arch))}.* {message}"):
        check_run(replace(RUN, arch=arch), SPEC, tmp_path / "out")


def test_images_too_small_for_the_network(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    with pytest.raises(ArchitectureError, match="--arch vgg19:width=1.* cannot process the 16x16 images of CIFAR-10"):
        check_run(replace(RUN, arch=parse_arch("vgg19:width=1")), replace(SPEC, size=16), tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_surrogate_of_other_classes(tmp_path: Path) -> None:
    run = replace(RUN, attack=parse_attack("lc:steps=2"), surrogate="clean.pt")
    classifier = parse_arch("resnet18:width=2,num_classes=7").build()
    with pytest.raises(ArchitectureError, match="--surrogate: expected the 10 classes of CIFAR-10, got 7"):
        train_run(run, TRAIN, TEST, tmp_path / "out", classifier=classifier)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["model.safetensors", "attack.json", "attack.safetensors", "log.jsonl", "resume.pt"])
def test_an_output_name_that_is_a_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(OutputError, match=f"{name}: expected a file name, got a folder"):
        check_run(RUN, SPEC, tmp_path, overwrite=True)


def test_a_trigger_that_no_pixel_shows(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="its trigger changes no pixel of 100 training images; make it stronger"):
        train_run(replace(RUN, attack=parse_attack("blended:alpha=0.001")), TRAIN, TEST, tmp_path)


def test_an_output_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(OutputError, match="is not a writable folder"):
            check_run(RUN, SPEC, place)


def test_too_small_a_rate_is_refused(tmp_path: Path) -> None:
    """Before a trigger is made, and before there is a folder."""
    for text, message in (
        ("ssba", "poisons none"),
        ("wanet", r"expected at least one attacked image, but 2 epochs would see 0.064 on average"),
    ):
        with pytest.raises(SettingError, match=message):
            train_run(replace(RUN, rate=0.001, attack=parse_attack(text)), TRAIN, TEST, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
