"""safetensors files that are not what they say: the format's own list of malformed cases, rebuilt."""

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save as to_bytes

from unbackdoor import checkpoint
from unbackdoor.errors import CheckpointError

ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
TWICE = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'


def _file(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


CASES = {
    "a name twice": _file(TWICE, bytes(4)),
    "overlap": _file({"a": ONE, "b": ONE}, bytes(4)),
    "hole": _file({"a": ONE, "b": {**ONE, "data_offsets": [8, 12]}}, bytes(12)),
    "trailing bytes": _file({"a": ONE}, bytes(5)),
    "data cut short": _file({"a": ONE}, bytes(3)),
    "no data": _file({"a": ONE}),
    "unknown dtype": _file({"a": {**ONE, "dtype": "F31"}}, bytes(4)),
    "negative shape": _file({"a": {**ONE, "shape": [-1]}}, bytes(4)),
    "shape that overflows": _file({"a": {**ONE, "shape": [2**63, 2]}}, bytes(4)),
    "shape and bytes disagree": _file({"a": {**ONE, "shape": [2]}}, bytes(4)),
    "offsets backwards": _file({"a": {**ONE, "data_offsets": [4, 0]}}, bytes(4)),
    "offsets missing": _file({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)),
    "metadata that is no string": _file({"__metadata__": {"a": 1}, "a": ONE}, bytes(4)),
    "not JSON": _file(b"{ not json }"),
    "a list": _file(b"       [1]"),
    "deep nesting": _file(b'{"a":' * 100_000),
    "header cut short": _file({"a": ONE}, length=10_000),
    "header of 2^63 bytes": _file({"a": ONE}, bytes(4), length=2**63),
    "header of 17 MB": _file(b'{"a":' + b" " * (17 * 2**20) + json.dumps(ONE).encode() + b"}", bytes(4)),
    "empty header": _file({}),
}


@pytest.mark.parametrize("case", list(CASES))
def test_a_malformed_file_is_refused(tmp_path: Path, case: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(CASES[case])
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    assert len(message) < 500 + len(str(path))


WHOLE = to_bytes({"a": torch.arange(20.0), "b": torch.ones(3, dtype=torch.int64)})


@pytest.mark.parametrize("length", [1, 7, 8, 9, 20, len(WHOLE) // 2, len(WHOLE) - 1])
def test_a_file_cut_short(tmp_path: Path, length: int) -> None:
    (tmp_path / "m.safetensors").write_bytes(WHOLE[:length])
    with pytest.raises(CheckpointError):
        checkpoint.load(tmp_path / "m.safetensors")


@settings(deadline=None, max_examples=100)
@given(where=st.integers(0, len(WHOLE) - 1), value=st.integers(0, 255))
def test_a_changed_byte_is_refused_or_read(tmp_path_factory: pytest.TempPathFactory, where: int, value: int) -> None:
    content = bytearray(WHOLE)
    content[where] = value
    path = tmp_path_factory.mktemp("changed") / "m.safetensors"
    path.write_bytes(content)
    try:
        loaded = checkpoint.load(path)
    except CheckpointError as error:
        assert len(str(error).splitlines()) == 1
    else:  # the format has no checksum: the values may differ, their number may not
        assert sum(tensor.numel() * tensor.element_size() for tensor in loaded.tensors.values()) == 104


@settings(deadline=None, max_examples=60)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_refused_or_read(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "m.safetensors"
    path.write_bytes(content[:8] + b"{" + content[8:])
    with pytest.raises(CheckpointError):
        checkpoint.load(path)


def test_an_archive_in_the_tail_does_not_make_it_a_torch_file(tmp_path: Path) -> None:
    data = b"PK\x05\x06" + bytes(18) + bytes(2)
    header = {"a": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}
    (tmp_path / "m.safetensors").write_bytes(_file(header, data))
    assert checkpoint.load(tmp_path / "m.safetensors").format == "safetensors"
