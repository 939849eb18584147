"""Files that are no model file of ours: what they are, by their content, and the way out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

#: Bytes at the beginning that are looked at.
HEAD = 512

#: Bytes of a JSON file that are read.
_MAX_JSON = 16 * 1024 * 1024

_WANTED = "give the network's weights as a .safetensors file, or as a state dict of PyTorch's"
_PIECES = "such networks are not read yet: give all of its tensors in one file"
_UNPACK = "unpack it, and give the model file in it"

_MAGIC = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras and TensorFlow write (.h5)", _WANTED),
    (b"GGUF", "a GGUF file, as llama.cpp reads", _WANTED),
    (b"\x93NUMPY", "a NumPy array (.npy), one without names", _WANTED),
    (b"\x1f\x8b", "compressed by gzip", _UNPACK),
    (b"BZh", "compressed by bzip2", _UNPACK),
    (b"\xfd7zXZ\x00", "compressed by xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (
        b"version https://git-lfs.github.com/spec/",
        "a Git LFS pointer, which stands for the file",
        "run 'git lfs pull' in the repository that it came from",
    ),
)
_PAGE = re.compile(rb"\s*<(!doctype html|html|head|\?xml)", re.IGNORECASE)

#: Of a model of ONNX's, which has no mark of its own: its version, then its producer, domain, opsets or graph.
_ONNX = re.compile(rb"\x08[\x01-\x1f][\x12\x1a\x22\x28\x32\x3a\x42]")
_SHARD = re.compile(r"-(\d+)-of-(\d+)(?=\.)")


def name(head: bytes, path: Path) -> str | None:
    """What a file is that is neither a safetensors file nor PyTorch's, and what to do; None if that is not known."""
    for magic, what, way in _MAGIC:
        if head.startswith(magic):
            return f"it is {what}; {way}"
    if head[257:262] == b"ustar":
        return f"it is a tar archive; {_UNPACK}"
    if head[4:8] == b"TFL3":
        return f"it is a TensorFlow Lite file; {_WANTED}"
    if _PAGE.match(head):
        return "it is a web page, saved in the place of the file; download the file itself (its raw or resolve link)"
    if _ONNX.match(head):
        return f"it looks like an ONNX file; {_WANTED}"
    if head[:1] == b"{" and b"\x00" not in head[:8]:
        return _json(path)
    return None


def _json(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            content = json.loads(stream.read(_MAX_JSON))
        files = set(content["weight_map"].values())
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return f"it is text (JSON); {_WANTED}"
    return f"it is the index of a network that lies in pieces, in {len(files)} files beside it; {_PIECES}"


def shard(path: Path) -> str | None:
    """What is to be said of a file that by its name is one piece of several."""
    found = _SHARD.search(path.name)
    if found is None or int(found[2]) < 2:
        return None
    return f"by its name piece {int(found[1])} of a network that lies in {int(found[2])} files; {_PIECES}"


def archive(names: Iterable[str]) -> str:
    """What a zip archive is that torch.save did not write."""
    entries = set(names)
    if any(entry.endswith("/archive_format") or entry.startswith("serialized_exported_program") for entry in entries):
        return f"a program of torch.export's (.pt2); {_WANTED}"
    if all(entry.endswith(".npy") for entry in entries):
        return f"NumPy arrays (.npz); {_WANTED}"
    if any(entry.endswith("model.weights.h5") for entry in entries):
        return f"a Keras file (.keras); {_WANTED}"
    some = ", ".join(map(repr, sorted(entries)[:3])) + (", ..." if len(entries) > 3 else "")
    return f"a zip archive that torch.save did not write (it holds {some}); {_UNPACK}"


def folder(path: Path) -> str:
    """What a folder seems to be."""
    entries = sorted(entry.name for entry in path.iterdir())
    index = next((entry for entry in entries if entry.endswith(".index.json")), None)
    if index is not None:
        return f"a folder with a network that lies in pieces ({index}); {_PIECES}"
    if "saved_model.pb" in entries:
        return f"a folder, a SavedModel of TensorFlow's; {_WANTED}"
    if "data.pkl" in entries:
        return "a folder, a PyTorch file that was unpacked; give the file itself"
    models = [entry for entry in entries if entry.endswith((".safetensors", ".pt", ".pth", ".bin", ".ckpt"))]
    if models:
        return f"a folder; give a file in it: {', '.join(models[:4])}" + (", ..." if len(models) > 4 else "")
    return "a folder"
