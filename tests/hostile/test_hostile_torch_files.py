"""PyTorch files from strangers: refused in one line, and nothing in them runs."""

import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from unbackdoor import checkpoint
from unbackdoor.errors import CheckpointError

GOOD = OrderedDict(a=torch.arange(400.0).view(20, 20), b=torch.ones(3, dtype=torch.int64))

# Reads a file in a process of its own, where any sign of foreign code ends the process at once.
GUARDED = """
import os, resource, sys, time
import torch
from unbackdoor import checkpoint
from unbackdoor.errors import UnbackdoorError

FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "exec.foreign")

def watch(event, arguments):
    if event.startswith(FORBIDDEN) or event == "open" and "canary" in str(arguments[0]):
        os.write(2, f"FORBIDDEN {event} {arguments}".encode())
        os._exit(99)

sys.addaudithook(watch)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.monotonic()
try:
    checkpoint.load(sys.argv[1])
except UnbackdoorError as error:
    print(str(error))
    print(time.monotonic() - started, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def _refuse(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    return message


def _refuse_guarded(path: Path) -> str:
    """The same in a child with an audit hook; also: within a second and 200 MB, all children on two busy cores."""
    done = subprocess.run([sys.executable, "-c", GUARDED, path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    message, figures = done.stdout.splitlines()
    seconds, megabytes = map(float, figures.split())
    assert seconds < 5
    assert megabytes < 200
    return message


class Calls:
    """Pickles as a call of anything."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
def test_a_call_is_named_and_never_made(tmp_path: Path, zipped: bool) -> None:
    canary = tmp_path / "canary"
    evil = [Calls(os.system, f"touch '{canary}'"), Calls(exec, f"open({str(canary)!r}, 'w')"), Calls(eval, "1")]
    path = tmp_path / "evil.pt"
    torch.save({"model": GOOD, "extra": evil}, path, _use_new_zipfile_serialization=zipped)
    message = _refuse_guarded(path)
    assert "refused: it holds pickled objects besides tensors (" in message
    for name in (f"{os.name}.system", "builtins.exec", "builtins.eval"):
        assert name in message or name.replace("builtins", "__builtin__") in message
    assert message.endswith("ask its author for a file with model.state_dict() only")
    assert not canary.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_bare_pickle_of_any_protocol(tmp_path: Path, protocol: int) -> None:
    canary = tmp_path / "canary"
    path = tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps({"w": Calls(os.system, f"touch '{canary}'")}, protocol=protocol))
    message = _refuse(path)
    assert not canary.exists()
    if protocol >= 2:  # the older ones do not begin with the byte that torch's files begin with
        assert f"{os.name}.system" in message


class Pickled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)


def test_a_module_pickled_whole(tmp_path: Path) -> None:
    torch.save(Pickled(), tmp_path / "whole.pt")
    message = _refuse(tmp_path / "whole.pt")
    assert "test_hostile_torch_files.Pickled" in message
    assert "torch.nn.modules.linear.Linear" in message


def test_torchvisions_resnet18_pickled_whole(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision").models
    torch.save({"net": models.resnet18()}, tmp_path / "whole.pt")
    message = _refuse(tmp_path / "whole.pt")
    assert "torchvision.models.resnet.ResNet" in message
    assert len(message) < 1200


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_torchscript_archive(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pt")
    assert "TorchScript" in _refuse(tmp_path / "script.pt")


class Claims:
    """Pickles as a tensor of one stored element that claims another shape."""

    def __init__(self, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.size, self.stride = size, stride

    def __reduce__(self) -> tuple:
        storage = torch.storage.TypedStorage(
            wrap_storage=torch.ones(1).untyped_storage(), dtype=torch.float32, _internal=True
        )
        return torch._utils._rebuild_tensor_v2, (storage, 0, self.size, self.stride, False, OrderedDict())


@pytest.mark.parametrize(
    ("size", "stride"),
    [((10**6, 10**6), (0, 0)), ((10**12,), (1,)), ((10**9,), (1,)), ((2,), (0,)), ((4, 10**6), (0, 1))],
)
def test_more_elements_than_the_file_holds(tmp_path: Path, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
    path = tmp_path / "bomb.pt"
    torch.save({"w": Claims(size, stride)}, path)
    assert path.stat().st_size < 3000
    message = _refuse_guarded(path)
    if not any(stride):
        assert f"'w': claims {size[0] * (size[1] if len(size) > 1 else 1)} elements, the file holds 1" in message


def test_tensors_without_dense_memory(tmp_path: Path) -> None:
    for name, tensor in (("sparse", torch.eye(3).to_sparse()), ("meta", torch.ones(3, device="meta"))):
        torch.save({"w": tensor}, tmp_path / f"{name}.pt")
        assert "'w': expected a dense CPU tensor, got" in _refuse(tmp_path / f"{name}.pt")


def _archive(path: Path, **options: object) -> None:
    """A good file whose entries are written anew, with other options."""
    stream = io.BytesIO()
    torch.save(GOOD, stream)
    with zipfile.ZipFile(stream) as old, zipfile.ZipFile(path, "w", **options) as new:
        for entry in old.namelist():
            new.writestr(entry, old.read(entry))


def test_a_compressed_archive(tmp_path: Path) -> None:
    _archive(tmp_path / "m.pt", compression=zipfile.ZIP_DEFLATED)
    assert "is compressed or encrypted" in _refuse(tmp_path / "m.pt")


def test_a_deflated_bomb(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        archive.writestr("archive/data/0", bytes(300 * 2**20))
    assert (tmp_path / "m.pt").stat().st_size < 2**20
    assert "refused" in _refuse_guarded(tmp_path / "m.pt")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_that_comes_twice(tmp_path: Path) -> None:
    torch.save(GOOD, tmp_path / "m.pt")
    with zipfile.ZipFile(tmp_path / "m.pt", "a") as archive:
        archive.writestr(archive.namelist()[0], b"another")
    assert "are repeated" in _refuse(tmp_path / "m.pt")


def test_a_wrong_checksum(tmp_path: Path) -> None:
    torch.save(GOOD, tmp_path / "m.pt")
    content = bytearray((tmp_path / "m.pt").read_bytes())
    where = content.index(torch.arange(400.0).numpy().tobytes())
    content[where + 100] ^= 1
    (tmp_path / "m.pt").write_bytes(content)
    assert "damaged: the checksum of its entry" in _refuse(tmp_path / "m.pt")


def test_an_encrypted_archive(tmp_path: Path) -> None:
    torch.save(GOOD, tmp_path / "m.pt")
    content = bytearray((tmp_path / "m.pt").read_bytes())
    directory = content.index(b"PK\x01\x02")
    content[directory + 8] |= 1
    (tmp_path / "m.pt").write_bytes(content)
    assert "compressed or encrypted" in _refuse(tmp_path / "m.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_cut_short_anywhere(tmp_path: Path, zipped: bool) -> None:
    stream = io.BytesIO()
    torch.save(GOOD, stream, _use_new_zipfile_serialization=zipped)
    whole = stream.getvalue()
    for length in (1, 2, 8, 9, 20, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "m.pt").write_bytes(whole[:length])
        message = _refuse(tmp_path / "m.pt")
        assert "to do so you have two options" not in message  # torch's advice to open it all the same


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"garbage garbage", "expected a safetensors or PyTorch file"),
        (b"\x80\x02garbage garbage", "not a readable PyTorch file"),
        (b"\x80", "not a readable PyTorch file"),
        (b"PK\x03\x04 garbage", "not a readable PyTorch file"),
        (b"PK\x05\x06" + bytes(18), "not a readable PyTorch file"),
        (b"\x89HDF\r\n\x1a\n  ", "expected a safetensors or PyTorch file"),
        (b"<html><head>Not Found", "expected a safetensors or PyTorch file"),
        (b"version https://git-lfs.github.com/spec/v1", "expected a safetensors or PyTorch file"),
    ],
)
def test_what_is_no_model_file(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.pt").write_bytes(content)
    assert message in _refuse(tmp_path / "m.pt")


def test_what_is_no_file(tmp_path: Path) -> None:
    assert "got a folder" in _refuse(tmp_path)
    assert "the file does not exist" in _refuse(tmp_path / "nothing.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, r"expected a state dict (names and tensors), at the top or up to three levels down, got a dict"),
        ([torch.ones(1)], "got a list of tensors"),
        (torch.ones(1), "got Tensor"),
        (7, "got int"),
        ({"a": torch.ones(1), "epoch": 3}, "got a dict with the entries 'a', 'epoch'"),
        ({1: torch.ones(1)}, "got a dict with the entries 1"),
        ({"model": {}}, "got a dict with the entries 'model'"),
        ({"a": {"b": {"c": {"d": {"e": torch.ones(1)}}}}}, "got a dict with the entries 'a'"),
    ],
)
def test_a_file_without_a_state_dict(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "m.pt")
    assert message in _refuse(tmp_path / "m.pt")


_STREAM = io.BytesIO()
torch.save(GOOD, _STREAM)
_WHOLE = _STREAM.getvalue()


def test_every_flipped_bit_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    """All of them, one by one: a folder's mark on an entry makes torch's own reader return unfilled memory."""
    path = tmp_path / "m.pt"
    for where in range(len(_WHOLE)):
        for bit in range(8):
            _load_flipped(path, where, bit)


def _load_flipped(path: Path, where: int, bit: int) -> None:
    content = bytearray(_WHOLE)
    content[where] ^= 1 << bit
    path.write_bytes(content)
    try:
        loaded = checkpoint.load(path)
    except CheckpointError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert all(torch.equal(loaded.tensors[name], GOOD[name]) for name in GOOD)
