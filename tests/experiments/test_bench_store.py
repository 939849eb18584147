"""The store: what was damaged is found, nothing is lost, nothing appears half-written."""

import json
from pathlib import Path

import pytest

from bench_grids import probes
from unbackdoor.errors import DataError, OutputError
from unbackdoor.experiments import Local, Store, run_grid, standing
from unbackdoor.experiments.cell import Probe, Training
from unbackdoor.experiments.store import sealed, unsealed

TRAINING = Training(
    data="cifar10",
    arch="resnet18:width=2",
    attack=None,
    rate=0,
    target=0,
    recipe="fast",
    epochs=1,
    seed=0,
    dtype="float32",
)


def test_every_flipped_bit_and_every_truncation_is_found() -> None:
    content = sealed({"key": "k", "result": {"acc": 0.5}, "seconds": 1.25})
    assert unsealed(content) == {"key": "k", "result": {"acc": 0.5}, "seconds": 1.25}
    for place in range(len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            assert unsealed(bytes(changed)) is None, (place, bit)
        assert unsealed(content[:place]) is None


def test_a_damaged_record_is_set_aside_and_done_again(tmp_path: Path) -> None:
    grid, store = probes(5), Store(tmp_path)
    run_grid(grid, store, Local())
    records = sorted((tmp_path / "probe").iterdir())
    originals = [json.loads(path.read_bytes())["record"]["result"] for path in records]
    records[0].write_bytes(records[0].read_bytes()[:-9])
    records[1].write_bytes(b"")
    records[2].write_bytes(records[2].read_bytes().replace(b'"probe"', b'"prope"'))
    records[3].write_bytes(records[4].read_bytes())  # another cell's record
    assert sum(standing(grid, store).done.values()) == 1
    assert not list((tmp_path / "damaged").iterdir())  # who only looks moves nothing
    found = run_grid(grid, store, Local())
    assert len(list((tmp_path / "damaged").iterdir())) == 4
    assert sum(found.done.values()) == 5
    assert [json.loads(path.read_bytes())["record"]["result"] for path in records] == originals


def test_files_beside_a_record_are_checked(tmp_path: Path) -> None:
    store = Store(tmp_path)
    record, files = {"result": {}, "seconds": 0.0}, {"model.safetensors": b"weights", "log.jsonl": b"log"}
    for damage in (b"weightz", b"", None):
        store.put(TRAINING, "k", record, files)
        assert store.read(TRAINING, "k")["files"].keys() == files.keys()
        file = store.folder(TRAINING, "k") / "model.safetensors"
        file.unlink() if damage is None else file.write_bytes(damage)
        assert store.read(TRAINING, "k") is None
        assert not store.has(TRAINING, "k")
    assert len(list((tmp_path / "damaged").iterdir())) == 3


def test_results_on_other_data_do_not_mix(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.check_data("cifar10", "a" * 64)
    store.check_data("cifar10", "a" * 64)
    assert store.digests() == {"cifar10": "a" * 64}
    with pytest.raises(DataError, match="holds results on another version of 'cifar10'"):
        store.check_data("cifar10", "b" * 64)


def test_two_drivers_never_work_on_the_same_cell(tmp_path: Path) -> None:
    one, other = Store(tmp_path), Store(tmp_path)
    with one.claim("k") as mine, other.claim("k") as theirs:
        assert (mine, theirs) == (True, False)
    with other.claim("k") as theirs:
        assert theirs
    assert list((tmp_path / "locks").iterdir()) == []


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="a store cannot be made here"):
        Store(tmp_path / "file")
    store = Store(tmp_path / "s")
    cell = Probe(number=1)
    (tmp_path / "s" / "probe").rmdir()
    with pytest.raises(OutputError, match="cannot be written"):
        store.put(cell, "k", {"result": {}, "seconds": 0}, {})


def test_a_failure_is_kept_and_forgotten(tmp_path: Path) -> None:
    store, cell = Store(tmp_path), Probe(number=1)
    store.fail(cell, "k", "no luck")
    assert store.failure("k")["reason"] == "no luck"
    store.put(cell, "k", {"result": {}, "seconds": 0.0}, {})
    assert store.failure("k") is None
