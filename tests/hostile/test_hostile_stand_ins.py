"""Objects beside the weights, written by somebody who means harm: nothing runs, nothing grows, nothing is believed."""

import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_hostile_torch_files import GUARDED, Calls

from unbackdoor import checkpoint
from unbackdoor.checkpoint.formats import torch as torch_file
from unbackdoor.checkpoint.stand_ins import StandIn
from unbackdoor.errors import CheckpointError

STATE = OrderedDict([("a.weight", torch.arange(6.0).view(2, 3)), ("a.bias", torch.ones(2))])


# As `GUARDED`, for many files: a process of its own costs seconds.
MANY = (
    GUARDED.partition("before = ")[0]
    + """
for path in sys.argv[1:]:
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    message = ""
    try:
        checkpoint.load(path)
    except UnbackdoorError as error:
        message = str(error)
    print(time.monotonic() - started, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, message)
"""
)


def _load_guarded(*paths: Path) -> list[str]:
    """What a child with an audit hook says to each file: the message of a refusal, or nothing where it was read."""
    done = subprocess.run([sys.executable, "-c", MANY, *paths], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    messages = []
    for line in done.stdout.splitlines():
        seconds, megabytes, message = line.split(" ", 2)
        assert float(seconds) < 5, message
        assert float(megabytes) < 200, message
        messages.append(message)
    assert len(messages) == len(paths)
    return messages


def _check_plain(path: Path) -> None:
    found = checkpoint.load(path)
    assert all(torch.equal(found.tensors[name], STATE[name]) for name in STATE)
    checkpoint.save(path.with_name("out.pt"), found.tensors, like=found, overwrite=True)
    torch.load(path.with_name("out.pt"), weights_only=True)


class Built:
    """Pickles with a state."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def __reduce__(self) -> tuple:
        return Built, (0,), self.state


class New:
    """Pickles as NEWOBJ."""

    def __new__(cls, *arguments: Any) -> "New":
        return super().__new__(cls)

    def __getnewargs__(self) -> tuple:
        return ("canary", {"deep": [1]})


def _array(shape: tuple[int, ...], dtype: str = "float64") -> Any:
    """A NumPy array that claims a shape, as its pickle does."""
    core = np.zeros(0).__reduce__()[0]
    state = (1, shape, np.dtype(dtype), False, b"")
    return Calls3(core, (np.ndarray, (0,), b"b"), state)


class Calls3(Calls):
    """Pickles as a call, and a state that is given to what it returns."""

    def __init__(self, function: object, arguments: tuple, state: object) -> None:
        self.call = function, arguments, state


def _nested(depth: int) -> Namespace:
    inner = Namespace(x=1)
    for _ in range(depth):
        inner = Namespace(inner=inner)
    return inner


def _laughs() -> list[Any]:
    """2^60 elements by reference, and an object at the bottom."""
    inner: list[Any] = [Namespace(a=1)]
    for _ in range(60):
        inner = [inner, inner]
    return inner


HARMLESS: dict[str, Callable[[], Any]] = {
    "a state of many entries": lambda: Built({f"k{n}": n for n in range(20_000)}),
    "a state that names slots": lambda: Built((None, {"__class__": dict, "__dict__": {}, "__setstate__": 1})),
    "a state that is a tuple": lambda: Built(("a",) * 1000),
    "new": New,
    "namespaces in namespaces": lambda: _nested(60),
    "lists of lists of lists": _laughs,
    "an array of objects": lambda: np.array([Namespace(a=1), {"b": New()}], dtype=object),
    "an array of 10^15 numbers": lambda: _array((10**15,)),
    "an array of many dimensions": lambda: _array((2,) * 60),
    "an array of objects that are not there": lambda: _array((10**9,), "object"),
}


def test_they_are_passed_over(tmp_path: Path) -> None:
    paths = []
    for number, what in enumerate(HARMLESS):
        for zipped in (True, False):
            path = tmp_path / f"{number}{zipped}.pt"
            torch.save({"net": STATE, "extra": HARMLESS[what]()}, path, _use_new_zipfile_serialization=zipped)
            paths.append(path)
    assert _load_guarded(*paths) == [""] * len(paths)
    for path in paths:
        _check_plain(path)


def test_a_call_of_the_system_is_refused_wherever_it_is(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    evil = Calls(os.system, f"touch '{canary}'")
    contents = [
        {"net": STATE, "args": Calls(Built, [evil])},
        {"net": STATE, "args": Built({"a": evil})},
        {"net": STATE, "args": Namespace(a=[{"b": (evil,)}])},
        {"net": STATE, "args": {Calls(Built, 1): evil}},
        {**STATE, "_extra_state": evil},
    ]
    paths = [tmp_path / f"{number}.pt" for number in range(len(contents))]
    for content, path in zip(contents, paths, strict=True):
        torch.save(content, path)
    for message in _load_guarded(*paths):
        assert "refused: it holds pickled objects besides tensors" in message
        assert f"{os.name}.system" in message
    assert not canary.exists()


@pytest.mark.parametrize(
    "name", ["builtins getattr", "builtins eval", "operator attrgetter", "importlib import_module"]
)
def test_functions_of_pythons_own_are_refused(tmp_path: Path, name: str) -> None:
    module, function = name.split()
    call = Calls(getattr(__import__(module), function), "__class__")
    torch.save({"net": STATE, "extra": call}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=f"refused: it holds pickled objects.*{function}"):
        checkpoint.load(tmp_path / "m.pt")


def _with_pickle(path: Path, program: bytes) -> None:
    """A PyTorch file whose pickle is this program."""
    stream = io.BytesIO()
    torch.save({"a": 1}, stream)
    with zipfile.ZipFile(stream) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.namelist():
            new.writestr(entry, program if entry.endswith("/data.pkl") else old.read(entry))


PROGRAMS = [
    b"\x80\x02cforeign\nThing\n)\x81}(X\x01\x00\x00\x00ak\x01ub.",  # an odd stack
    b"\x80\x02cforeign\nThing\n}X\x01\x00\x00\x00aK\x01sb.",  # BUILD on the class itself
    b"\x80\x02ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb.",  # BUILD on a class of torch's list
    b"\x80\x02}cforeign\nThing\n}X\x01\x00\x00\x00aK\x01sb.",  # and on a dict
    b"\x80\x02h\x05.",  # a memo that was never filled
    b"\x80\x02cforeign\nThing\nq\x00h\x00h\x00\x86R.",  # the class as its own argument
    b"\x80\x02cforeign\nThing\n" + b"h\x00" * 3 + b".",
    b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(cforeign\nThing\ncforeign\nThing\n)}tR.",
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(cforeign\nThing\nK\x00)))tR.",
    b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02ls\x85R.",
    b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    b"\x80\x02(" + b"(" * 100_000 + b"t" * 100_000 + b"t.",
    b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",  # a number and a string that claim a length
    b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + b"x.",
    b"\x80\x02}(X\x08\x00\x00\x00a.weightcforeign\nThing\n" + b"\x85" * 50_000 + b"u.",
]


def _with_pickle(path: Path, program: bytes) -> None:
    """A PyTorch file whose pickle is this program."""
    stream = io.BytesIO()
    torch.save({"a": 1}, stream)
    with zipfile.ZipFile(stream) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.namelist():
            new.writestr(entry, program if entry.endswith("/data.pkl") else old.read(entry))


def test_programs_that_no_pickler_writes(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.pt" for number in range(len(PROGRAMS))]
    for path, program in zip(paths, PROGRAMS, strict=True):
        _with_pickle(path, program)
    for path, message in zip(paths, _load_guarded(*paths), strict=True):
        assert message.startswith(f"{path}: ")


def test_calls_that_take_any_amount_of_memory(tmp_path: Path) -> None:
    for zipped in (True, False):
        call = Calls(bytearray, 2**36)
        torch.save({"net": STATE, "extra": call}, tmp_path / f"{zipped}.pt", _use_new_zipfile_serialization=zipped)
    for message in _load_guarded(tmp_path / "True.pt", tmp_path / "False.pt"):
        assert "its pickle calls bytearray, which may take any amount of memory" in message


def test_what_is_nested_too_deeply_to_be_cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep: Any = []
    for _ in range(10 * sys.getrecursionlimit()):
        deep = [deep]
    torch.save({"net": STATE}, tmp_path / "m.pt")
    monkeypatch.setattr(torch_file, "_content", lambda _path: ({"net": STATE, "deep": deep}, ("foreign.Thing",)))
    with pytest.raises(CheckpointError, match="refused: nested too deeply"):
        checkpoint.load(tmp_path / "m.pt")


def test_many_ways_to_one_state_dict_and_a_bomb_under_a_mask(tmp_path: Path) -> None:
    inner: dict[str, Any] = {f"k{n}": 1 for n in range(2000)}
    for _ in range(4):  # dicts of dicts by reference: each is looked through once
        inner = {f"k{n}": inner for n in range(2000)}
    torch.save({"net": STATE, "more": inner}, tmp_path / "many.pt")
    huge = torch.ones(1).expand(10**6, 10**6)
    torch.save({"a.weight_orig": huge, "a.weight_mask": huge}, tmp_path / "bomb.pt")
    first, second = _load_guarded(tmp_path / "many.pt", tmp_path / "bomb.pt")
    assert first == ""
    assert "claims 1000000000000 elements, the file holds 1" in second


def test_a_stand_in_is_never_written() -> None:
    with pytest.raises(TypeError, match="a stand-in is never written"):
        pickle.dumps(StandIn())
