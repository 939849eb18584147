"""Files that cannot be read: what they are, by their content, and what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

#: How many bytes at the beginning of a file are inspected.
HEAD = 512

#: How many bytes of a JSON file are read.
_MAX_JSON = 16 * 1024 * 1024

_WANTED = "save the network's weights as a .safetensors file or a PyTorch state dict"
_PIECES = "split networks are not supported yet; put all tensors in one file"
_UNPACK = "unpack it and use the model file inside"

_MAGIC = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (.h5), as Keras and TensorFlow write", _WANTED),
    (b"GGUF", "a GGUF file, as llama.cpp uses", _WANTED),
    (b"\x93NUMPY", "a single NumPy array (.npy)", _WANTED),
    (b"\x1f\x8b", "a file compressed by gzip", _UNPACK),
    (b"BZh", "a file compressed by bzip2", _UNPACK),
    (b"\xfd7zXZ\x00", "a file compressed by xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a file compressed by zstd", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (
        b"version https://git-lfs.github.com/spec/",
        "a Git LFS pointer in place of the file",
        "run 'git lfs pull' in its repository",
    ),
)
_PAGE = re.compile(rb"\s*<(!doctype html|html|head|\?xml)", re.IGNORECASE)

#: The beginning of an ONNX model, which has no magic number: its version, then producer, domain, opsets or graph.
_ONNX = re.compile(rb"\x08[\x01-\x1f][\x12\x1a\x22\x28\x32\x3a\x42]")
_SHARD = re.compile(r"-(\d+)-of-(\d+)(?=\.)")


def name(head: bytes, path: Path) -> str | None:
    """What a file is that is not a safetensors or PyTorch file, and what to do; None if unknown."""
    for magic, what, way in _MAGIC:
        if head.startswith(magic):
            return f"{what}; {way}"
    if head[257:262] == b"ustar":
        return f"a tar archive; {_UNPACK}"
    if head[4:8] == b"TFL3":
        return f"a TensorFlow Lite file; {_WANTED}"
    if _PAGE.match(head):
        return "a web page saved in its place; download the file itself (by its raw or resolve link)"
    if _ONNX.match(head):
        return f"what looks like an ONNX file; {_WANTED}"
    if head[:1] == b"{" and b"\x00" not in head[:8]:
        return _json(path)
    return None


def _json(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            content = json.loads(stream.read(_MAX_JSON))
        files = set(content["weight_map"].values())
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return f"JSON text; {_WANTED}"
    return f"the index of a network that is split into {len(files)} files; {_PIECES}"


def shard(path: Path) -> str | None:
    """The end of a message on a file whose name says that it is one of several parts; None if it does not."""
    found = _SHARD.search(path.name)
    if found is None or int(found[2]) < 2:
        return None
    return f"part {int(found[1])} of {int(found[2])}, by its name; {_PIECES}"


def archive(names: Iterable[str]) -> str:
    """What a zip archive is that `torch.save` did not write, and what to do."""
    entries = set(names)
    if any(entry.endswith("/archive_format") or entry.startswith("serialized_exported_program") for entry in entries):
        return f"a torch.export program (.pt2); {_WANTED}"
    if all(entry.endswith(".npy") for entry in entries):
        return f"NumPy arrays (.npz); {_WANTED}"
    if any(entry.endswith("model.weights.h5") for entry in entries):
        return f"a Keras file (.keras); {_WANTED}"
    some = ", ".join(map(repr, sorted(entries)[:3])) + (", ..." if len(entries) > 3 else "")
    return f"a zip archive that torch.save did not write (it holds {some}); {_UNPACK}"


def folder(path: Path) -> str:
    """What a folder seems to be, and what to do."""
    entries = sorted(entry.name for entry in path.iterdir())
    index = next((entry for entry in entries if entry.endswith(".index.json")), None)
    if index is not None:
        return f"a folder with a network that is split into several files ({index}); {_PIECES}"
    if "saved_model.pb" in entries:
        return f"a TensorFlow SavedModel folder; {_WANTED}"
    if "data.pkl" in entries:
        return "a folder that is an unpacked PyTorch file; use the file itself"
    models = [entry for entry in entries if entry.endswith((".safetensors", ".pt", ".pth", ".bin", ".ckpt"))]
    if models:
        return f"a folder; use a file in it: {', '.join(models[:4])}" + (", ..." if len(models) > 4 else "")
    return "a folder"
