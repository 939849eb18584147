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
from unbackdoor.errors import CheckpointError

STATE = OrderedDict([("a.weight", torch.arange(6.0).view(2, 3)), ("a.bias", torch.ones(2))])


def _load_guarded(path: Path) -> list[str]:
    """What a child with an audit hook says: the message of a refusal, seconds and megabytes."""
    script = GUARDED.replace("print(time.monotonic()", "pass\nprint(time.monotonic()").replace(
        "    pass\nprint", "print"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    *message, figures = done.stdout.splitlines()
    seconds, megabytes = map(float, figures.split())
    assert seconds < 8
    assert megabytes < 200
    return message


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


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("what", list(HARMLESS))
def test_it_is_passed_over(tmp_path: Path, what: str, zipped: bool) -> None:
    path = tmp_path / "m.pt"
    torch.save({"net": STATE, "extra": HARMLESS[what]()}, path, _use_new_zipfile_serialization=zipped)
    assert _load_guarded(path) == []
    _check_plain(path)


@pytest.mark.parametrize("where", ["arguments", "state", "element", "key", "among the weights"])
def test_a_call_of_the_system_is_refused_wherever_it_is(tmp_path: Path, where: str) -> None:
    canary = tmp_path / "canary"
    evil = Calls(os.system, f"touch '{canary}'")
    content = {
        "arguments": {"net": STATE, "args": Calls(Built, [evil])},
        "state": {"net": STATE, "args": Built({"a": evil})},
        "element": {"net": STATE, "args": Namespace(a=[{"b": (evil,)}])},
        "key": {"net": STATE, "args": {Calls(Built, 1): evil}},
        "among the weights": {**STATE, "_extra_state": evil},
    }[where]
    torch.save(content, tmp_path / "m.pt")
    (message,) = _load_guarded(tmp_path / "m.pt")
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


@pytest.mark.parametrize(
    "program",
    [
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
    ],
)
def test_programs_that_no_pickler_writes(tmp_path: Path, program: bytes) -> None:
    _with_pickle(tmp_path / "m.pt", program)
    (message,) = _load_guarded(tmp_path / "m.pt")
    assert message.startswith(f"{tmp_path / 'm.pt'}: ")


@pytest.mark.parametrize("zipped", [True, False])
def test_calls_that_take_any_amount_of_memory(tmp_path: Path, zipped: bool) -> None:
    call = Calls(bytearray, 2**36)
    torch.save({"net": STATE, "extra": call}, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    (message,) = _load_guarded(tmp_path / "m.pt")
    assert "its pickle calls bytearray, which may take any amount of memory" in message


def test_a_number_of_any_size(tmp_path: Path) -> None:
    """LONG4 and long strings claim a length; the file ends before."""
    for opcode in (b"\x8b" + struct.pack("<i", 2**31 - 1), b"X" + struct.pack("<I", 2**32 - 1)):
        _with_pickle(tmp_path / "m.pt", b"\x80\x02" + opcode + b"x.")
        (message,) = _load_guarded(tmp_path / "m.pt")
        assert "not a readable PyTorch file" in message


def test_the_depth_of_what_is_cleaned(tmp_path: Path) -> None:
    deep: Any = Namespace(a=1)
    limit = sys.getrecursionlimit()
    program = b"\x80\x02}(X\x08\x00\x00\x00a.weight" + b"cforeign\nThing\n" + b"\x85" * (10 * limit) + b"u."
    _with_pickle(tmp_path / "m.pt", program)
    (message,) = _load_guarded(tmp_path / "m.pt")
    assert "refused" in message
    assert deep is not None


def test_many_ways_to_one_state_dict(tmp_path: Path) -> None:
    """Dicts of dicts by reference: each is looked through once."""
    inner: dict[str, Any] = {f"k{n}": 1 for n in range(2000)}
    for _ in range(4):
        inner = {f"k{n}": inner for n in range(2000)}
    torch.save({"net": STATE, "more": inner}, tmp_path / "m.pt")
    assert _load_guarded(tmp_path / "m.pt") == []


def test_a_weight_that_is_a_bomb_is_never_multiplied_with_its_mask(tmp_path: Path) -> None:
    huge = torch.ones(1).expand(10**6, 10**6)
    torch.save({"a.weight_orig": huge, "a.weight_mask": huge}, tmp_path / "m.pt")
    (message,) = _load_guarded(tmp_path / "m.pt")
    assert "claims 1000000000000 elements, the file holds 1" in message


def test_a_stand_in_is_never_written() -> None:
    from unbackdoor.checkpoint.stand_ins import StandIn

    with pytest.raises(TypeError, match="a stand-in is never written"):
        pickle.dumps(StandIn())
