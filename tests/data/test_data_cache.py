"""Decoded once, mapped from then on, and never trusted when damaged."""

import multiprocessing
import os
import subprocess
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_images import pixels, write

from unbackdoor.data import DATASETS, CacheWarning, LabelledImages, cache, cache_folder, load_dataset
from unbackdoor.data.source import Progress, Source
from unbackdoor.errors import DataError

SPEC = replace(DATASETS["cifar10"], name="made", title="Made", size=8)
FORK = pytest.mark.skipif(os.name != "posix", reason="needs fork and signals")


def made(n: int = 200, *, resized: int = 0) -> LabelledImages:
    """n images of 8x8 pixels, and labels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return LabelledImages(images, torch.arange(n) % 10, SPEC, resized)


class Counted:
    """A source of made images that counts how often it is decoded."""

    def __init__(self, folder: Path, n: int = 200) -> None:
        self.times = 0
        self.n = n
        file = folder / "source"
        file.write_bytes(b"1")
        self.source = Source("made", folder, (file,), self._read)

    def _read(self, _progress: Progress | None) -> LabelledImages:
        self.times += 1
        return made(self.n, resized=17)

    def load(self) -> LabelledImages:
        return cache.read_through(self.source, "train", SPEC)


@pytest.fixture
def counted(tmp_path: Path) -> Counted:
    return Counted(tmp_path)


def _same(data: LabelledImages, n: int = 200) -> bool:
    wanted = made(n, resized=17)
    return data.images.equal(wanted.images) and data.labels.equal(wanted.labels) and data.resized == 17


def _file(cache_dir: Path) -> Path:
    (file,) = cache_dir.iterdir()
    return file


def test_the_second_start_decodes_nothing(counted: Counted, cache_dir: Path) -> None:
    with warnings.catch_warnings(action="error"):
        first, second = counted.load(), counted.load()
    assert counted.times == 1
    assert _same(first)
    assert _same(second)
    assert second.spec is SPEC
    assert second.images.is_contiguous()
    assert _file(cache_dir).name.startswith("made-train-")
    assert cache.verify(_file(cache_dir))


def test_images_are_mapped_and_not_read(counted: Counted, cache_dir: Path) -> None:
    data = counted.load()
    if not Path("/proc/self/maps").exists():
        pytest.skip("no list of mappings here")
    start = data.images.data_ptr()
    mappings = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    (found,) = (m for m in mappings if int(m[0].split("-")[0], 16) <= start < int(m[0].split("-")[1], 16))
    assert found[-1] == str(_file(cache_dir))
    assert found[1].endswith("p")  # private


def test_writing_into_the_tensors_leaves_the_cache_alone(counted: Counted, cache_dir: Path) -> None:
    counted.load()
    before = _file(cache_dir).read_bytes()
    data = counted.load()
    data.images.fill_(7)
    data.labels.fill_(7)
    assert _file(cache_dir).read_bytes() == before
    assert _same(counted.load())
    assert counted.times == 1


def test_a_source_that_was_touched_is_decoded_again(counted: Counted, cache_dir: Path) -> None:
    counted.load()
    (file,) = counted.source.files
    os.utime(file, ns=(0, 1_000_000_000))
    counted.load()
    file.write_bytes(b"22")
    os.utime(file, ns=(0, 1_000_000_000))
    counted.load()
    assert counted.times == 3
    assert len(list(cache_dir.iterdir())) == 3


def test_what_a_digest_covers(counted: Counted, tmp_path: Path) -> None:
    source = counted.source
    (tmp_path / "other").write_bytes(b"1")
    names = {
        cache.file_name(source, "train", SPEC),
        cache.file_name(source, "test", SPEC),
        cache.file_name(source, "train", replace(SPEC, size=9)),
        cache.file_name(source, "train", replace(SPEC, resize=True)),
        cache.file_name(source, "train", replace(SPEC, classes=SPEC.classes[::-1])),
        cache.file_name(source, "train", replace(SPEC, name="../made")),
        cache.file_name(replace(source, layout="other"), "train", SPEC),
        cache.file_name(replace(source, files=(tmp_path / "other",)), "train", SPEC),
        cache.file_name(replace(source, files=(*source.files, tmp_path / "other")), "train", SPEC),
    }
    assert len(names) == 9
    assert not any("/" in name for name in names)
    # what is done to decoded images is no part of it, nor is the place of the source
    changed = replace(SPEC, mean=(0.0, 0.0, 0.0), flip=False, title="x")
    assert cache.file_name(source, "train", changed) in names
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert cache.file_name(replace(source, folder=moved, files=(moved / "source",)), "train", SPEC) in names


def test_another_folder_whose_files_look_the_same(tmp_path: Path) -> None:
    """Names, sizes and times of modification are equal, as rsync and archives leave them."""
    for folder, value in (("mine", 1), ("theirs", 2)):
        image = tmp_path / folder / "train" / "cat" / "a.bmp"
        write(image, np.full((32, 32, 3), value, np.uint8))
        os.utime(image, ns=(0, 1_000_000_000))
    seen = [
        load_dataset("cifar10", "train", tmp_path / folder).images.unique().tolist() for folder in ("mine", "theirs")
    ]
    assert seen == [[1], [2]]


def test_a_source_that_is_gone_is_an_error_although_the_cache_has_it(counted: Counted) -> None:
    counted.load()
    counted.source.files[0].unlink()
    with pytest.raises(DataError, match="source: cannot be read: No such file"):
        counted.load()


def test_a_time_of_modification_that_was_set_back_deceives_nobody(tmp_path: Path) -> None:
    image = tmp_path / "train" / "cat" / "a.png"
    write(image, pixels(0))
    load_dataset("cifar10", "train", tmp_path)
    status = image.stat()
    image.write_bytes(b"x" * status.st_size)
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(DataError, match="cannot be decoded"):
        load_dataset("cifar10", "train", tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 900, -1, -20_000])
def test_a_truncated_file_is_made_anew(counted: Counted, cache_dir: Path, keep: int) -> None:
    counted.load()
    file = _file(cache_dir)
    whole = file.read_bytes()
    file.write_bytes(whole[:keep])
    with pytest.warns(CacheWarning, match=r"safetensors: damaged \(.*\); rebuilding it from the images"):
        assert _same(counted.load())
    assert counted.times == 2
    assert file.read_bytes() == whole
    assert _same(counted.load())
    assert counted.times == 2


def test_a_longer_file_is_made_anew(counted: Counted, cache_dir: Path) -> None:
    counted.load()
    with _file(cache_dir).open("ab") as stream:
        stream.write(b"\0")
    with pytest.warns(CacheWarning, match=": damaged"):
        assert _same(counted.load())


@pytest.mark.parametrize("bit", [0, 1, 5, 7])
def test_no_flipped_bit_in_the_header_is_trusted(counted: Counted, cache_dir: Path, bit: int) -> None:
    counted.load()
    file = _file(cache_dir)
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    padding = header - len(whole[:header].rstrip(b" "))
    for place in range(bit, header - padding, 8):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        with pytest.warns(CacheWarning, match=": damaged"):
            assert cache._load(file, SPEC) is None


@pytest.mark.parametrize("where", ["a label", "the first image", "the last image"])
def test_a_flipped_bit_in_what_is_sampled(counted: Counted, cache_dir: Path, where: str) -> None:
    counted.load()
    whole = bytearray(_file(cache_dir).read_bytes())
    start = len(whole) - 200 * 192
    whole[{"a label": start - 808, "the first image": start + 5, "the last image": -1}[where]] ^= 1
    _file(cache_dir).write_bytes(whole)
    with pytest.warns(CacheWarning, match=r": damaged \(its images or labels changed\)"):
        assert _same(counted.load())


def test_a_flipped_bit_elsewhere_is_found_by_verify(counted: Counted, cache_dir: Path) -> None:
    counted.load()
    whole = bytearray(_file(cache_dir).read_bytes())
    whole[len(whole) - 200 * 192 + 192] ^= 1  # in the second image, which the sample leaves out
    _file(cache_dir).write_bytes(whole)
    assert not cache.verify(_file(cache_dir))
    counted.load()
    assert counted.times == 1


@pytest.mark.parametrize("content", [b"no cache", b"\xff" * 5000])
def test_another_file_of_that_name(counted: Counted, cache_dir: Path, content: bytes) -> None:
    counted.load()
    _file(cache_dir).write_bytes(content)
    assert not cache.verify(_file(cache_dir))
    with pytest.warns(CacheWarning, match=": damaged"):
        assert _same(counted.load())


def test_a_folder_in_place_of_the_file(counted: Counted, cache_dir: Path) -> None:
    (cache_dir / cache.file_name(counted.source, "train", SPEC)).mkdir(parents=True)
    with pytest.warns(CacheWarning) as told:
        assert _same(counted.load())
    assert [": damaged" in str(told[0].message), "cannot cache decoded images there" in str(told[1].message)] == [
        True,
        True,
    ]


def test_without_a_place_for_it_images_stay_in_memory(counted: Counted, cache_dir: Path) -> None:
    cache_dir.write_text("a file")
    with pytest.warns(CacheWarning) as told:
        assert _same(counted.load())
    assert [str(w.message) for w in told] == [
        f"{cache_dir}: cannot cache decoded images there (File exists), so the next run decodes them again; "
        "set $UNBACKDOOR_CACHE to another folder"
    ]
    assert cache_dir.read_text() == "a file"


def test_it_is_told_once(counted: Counted, cache_dir: Path) -> None:
    cache_dir.write_text("a file")
    with warnings.catch_warnings(record=True, action="default") as told:
        for _ in range(3):
            counted.load()
    assert len(told) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB, where one may be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    try:
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small file system may not be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNBACKDOOR_CACHE", str(small_disk))
    with pytest.warns(CacheWarning, match=r"cannot cache decoded images there \(.*No space left on device\)"):
        assert _same(Counted(tmp_path, n=2000).load(), 2000)
    assert list(small_disk.iterdir()) == []


def _load_together(folder: Path, barrier: object, answers: object) -> None:
    counted = Counted.__new__(Counted)
    counted.times, counted.n = 0, 2000
    counted.source = Source("made", folder, (folder / "source",), counted._read)
    barrier.wait()
    with warnings.catch_warnings(action="error"):
        answers.put(_same(counted.load(), 2000))


@FORK
def test_two_processes_at_once(tmp_path: Path, cache_dir: Path) -> None:
    counted = Counted(tmp_path, n=2000)
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(2), context.Queue()
    children = [context.Process(target=_load_together, args=(tmp_path, barrier, answers)) for _ in range(2)]
    for child in children:
        child.start()
    assert [answers.get(timeout=60), answers.get(timeout=60)] == [True, True]
    for child in children:
        child.join()
    assert cache.verify(_file(cache_dir))
    assert _same(counted.load(), 2000)
    assert counted.times == 0


def _save_for_ever(file: Path, data: LabelledImages) -> None:
    for _ in range(10**9):
        cache._save(file, data, "train")


@FORK
def test_kill_9_leaves_a_whole_file_or_none(counted: Counted, cache_dir: Path) -> None:
    counted.n = 10_000
    file = cache_dir / cache.file_name(counted.source, "train", SPEC)
    cache_dir.mkdir()
    data, whole = counted.source.read(None), 0
    for i in range(8):
        child = multiprocessing.get_context("fork").Process(target=_save_for_ever, args=(file, data))
        child.start()
        time.sleep(0.01 + 0.01 * i)
        child.kill()
        child.join()
        if file.exists():
            assert cache.verify(file)
            file.unlink()
            whole += 1
    assert whole > 0  # the children did write
    assert _same(counted.load(), 10_000)


def test_what_killed_processes_left_is_swept_when_it_is_old(counted: Counted, cache_dir: Path) -> None:
    cache_dir.mkdir()
    old, young = (cache_dir / f".made-train-0.safetensors.{name}.part" for name in ("old", "young"))
    for part in (old, young):
        part.write_bytes(b"half")
    os.utime(old, (0, time.time() - 2 * 24 * 3600))
    counted.load()
    assert (old.exists(), young.exists()) == (False, True)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({"UNBACKDOOR_CACHE": "here", "XDG_CACHE_HOME": "/x"}, "here"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/unbackdoor"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/unbackdoor"),
        ({"UNBACKDOOR_CACHE": ""}, "/home/me/.cache/unbackdoor"),
    ],
)
def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, values: dict[str, str], wanted: str) -> None:
    for name in ("UNBACKDOOR_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(wanted)


def test_without_a_home(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("UNBACKDOOR_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(Path, "home", home)
    with pytest.warns(CacheWarning, match="Could not determine home directory"):
        assert _same(counted.load())
