"""`unbackdoor repair` killed at any moment, and on a full disk: no broken file ever stands under the final name."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from unbackdoor import checkpoint
from unbackdoor.models import parse_arch

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and mounts")
COMMAND = [sys.executable, "-c", "from unbackdoor.cli import main; main()", "repair", "in.pt", "--quiet"]
ARCH = ["--arch", "resnet18"]


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model file of 45 MB."""
    folder = tmp_path_factory.mktemp("killed")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = parse_arch("resnet18").build().state_dict()
    state["layer1.0.conv1.weight"][3] *= 50
    checkpoint.save(folder / "in.pt", state)
    assert (folder / "in.pt").stat().st_size > 44_000_000
    return folder


def _leftovers(folder: Path) -> set[Path]:
    return set(folder.glob(".*.part"))


def _start(folder: Path, output: str) -> subprocess.Popen:
    words = [*COMMAND, *ARCH, "-o", output, "--force"]
    return subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _kill(folder: Path, output: str, delay: float, *, writing: bool) -> bool:
    """Kill a repair some seconds after its start, or after its temporary file appeared; whether that is left."""
    before = _leftovers(folder)
    process = _start(folder, output)
    while writing and process.poll() is None and _leftovers(folder) == before:
        time.sleep(0.0005)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return _leftovers(folder) != before


def _kill_often(folder: Path, count: int, outputs: tuple[str, ...]) -> int:
    """Kill that many repairs, every fifth at any moment and the others while they write; how many left a part."""
    random_ = random.Random(0)
    source, hits, seconds = _digest(folder / "in.pt"), 0, 0.0
    found: dict[str, set[str]] = {output: set() for output in outputs}  # what stood under a final name afterwards
    for number in range(count):
        output = folder / outputs[number % len(outputs)]
        state = ("an older file", "nothing", "what the last left")[number % 3]
        if state != "what the last left":
            output.unlink(missing_ok=True)
        if state == "an older file":
            output.write_bytes(b"old")
        started = time.monotonic()
        if number % 5 < 4:
            hits += _kill(folder, output.name, random_.uniform(0, 0.08), writing=True)
            seconds = max(seconds, time.monotonic() - started)
        else:
            hits += _kill(folder, output.name, random_.uniform(0, seconds), writing=False)
        assert _digest(folder / "in.pt") == source
        if output.exists():
            found[output.name].add(_digest(output))
        else:
            assert state != "an older file"
        strange = {file.name for file in folder.iterdir()} - {"in.pt", *outputs}
        assert all(name.startswith(".out.") and name.endswith(".part") for name in strange)
        for part in sorted(_leftovers(folder))[2:]:
            part.unlink()
    parts = {part: _digest(part) for part in _leftovers(folder)}
    for name in outputs:  # a later run is not disturbed by what others left, and leaves it alone
        assert _start(folder, name).wait() == 0
        assert found[name] <= {_digest(folder / name), hashlib.sha256(b"old").hexdigest()}
    assert {part: _digest(part) for part in _leftovers(folder)} == parts
    assert _digest(folder / "in.pt") == source
    return hits


def test_a_repair_that_is_killed(folder: Path) -> None:
    """On a busy machine a write may be over before the kill: then once more."""
    assert any(_kill_often(folder, 2, ("out.safetensors",)) for _ in range(5))


@pytest.mark.slow
def test_fifty_repairs_that_are_killed(folder: Path, record_property: Callable[[str, object], None]) -> None:
    hits = _kill_often(folder, 50, ("out.safetensors", "out.pt"))
    record_property("kills while writing", hits)
    print(f"{hits} of 50 kills left a temporary file")
    assert hits >= 10


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode != 0:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("output", ["out.safetensors", "out.pt"])
def test_a_full_disk(folder: Path, small_disk: Path, output: str) -> None:
    before = _digest(folder / "in.pt")
    (small_disk / output).write_bytes(b"an older file")
    words = [*COMMAND, *ARCH, "-o", str(small_disk / output), "--force"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"unbackdoor: {small_disk / output}: cannot be written: No space left on device\n"
    assert [file.name for file in small_disk.iterdir()] == [output]
    assert (small_disk / output).read_bytes() == b"an older file"
    assert _digest(folder / "in.pt") == before
