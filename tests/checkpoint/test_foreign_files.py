"""Files of other makers, which are named for what they are, with the way out: one line, exit code 2."""

import gzip
import json
import lzma
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from unbackdoor import checkpoint
from unbackdoor.api import repair, scan
from unbackdoor.errors import CheckpointError, IncompleteError

ONNX = b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:\x83\x01\n\x1f\n\x01x"  # version 8, producer, its version, graph


def _refuse(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    assert "pickle.load" not in message
    assert "weights_only=False" not in message
    return message


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors", "m"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            ONNX,
            "what looks like an ONNX file; save the network's weights as a .safetensors file or a PyTorch state dict",
        ),
        (b"\x89HDF\r\n\x1a\n\x00\x00\x00\x00", "got an HDF5 file (.h5), as Keras and TensorFlow write"),
        (b"GGUF\x03\x00\x00\x00{\x00\x00\x00\x00\x00\x00\x00", "got a GGUF file"),
        (gzip.compress(b"x" * 1000, mtime=0), "got a file compressed by gzip; unpack it and use the model file inside"),
        (lzma.compress(b"x" * 1000), "got a file compressed by xz"),
        (b"\x28\xb5\x2f\xfd" + bytes(20), "got a file compressed by zstd"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "run 'git lfs pull' in its repository"),
        (b"\n<!DOCTYPE html>\n<html lang=en>", "got a web page saved in its place; download the file"),
        (b"<html><body>Sign in", "got a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "got a web page"),
        (b'{"error":"Repository not found"}', "got JSON text"),
        (b'{"a":1,"{":2}', "got JSON text"),
        (b"\x1c\x00\x00\x00TFL3" + bytes(20), "got a TensorFlow Lite file"),
    ],
)
def test_by_the_first_bytes(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert said in _refuse(tmp_path / name)


def test_by_what_is_in_an_archive(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", a=np.ones(3))
    assert "NumPy arrays (.npz)" in _refuse(tmp_path / "w.npz")
    np.savez_compressed(tmp_path / "c.npz", a=np.ones(3))
    assert "NumPy arrays (.npz)" in _refuse(tmp_path / "c.npz")
    np.save(tmp_path / "w.npy", np.ones(3))
    assert "a single NumPy array (.npy)" in _refuse(tmp_path / "w.npy")
    for name, entries, said in (
        ("m.keras", ["metadata.json", "config.json", "model.weights.h5"], "a Keras file (.keras)"),
        ("m.zip", ["model.pt", "README.md"], "torch.save did not write (it holds 'README.md', 'model.pt'); unpack it"),
        ("m.pt2", ["m/archive_format", "m/models/model.json"], "a torch.export program (.pt2)"),
    ):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for entry in entries:
                archive.writestr(entry, b"x")
        assert said in _refuse(tmp_path / name)
    with tarfile.open(tmp_path / "m.tar", "w") as tar:
        tar.add(tmp_path / "w.npy", "w.npy")
    assert "got a tar archive; unpack it" in _refuse(tmp_path / "m.tar")


def test_a_network_in_pieces(tmp_path: Path) -> None:
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for number, name in enumerate(names):
        checkpoint.save(tmp_path / name, {f"{number}.weight": torch.ones(2, 2)})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {f"{n}.weight": name for n, name in enumerate(names)}}))
    assert "got the index of a network that is split into 2 files" in _refuse(index)
    assert "got a folder with a network that is split into several files (model.safetensors.index.json)" in _refuse(
        tmp_path
    )
    assert "expected a whole network, got part 1 of 2, by its name" in _refuse(tmp_path / names[0])
    (tmp_path / names[0]).rename(tmp_path / "model-00001-of-00001.safetensors")  # one piece is all of it
    checkpoint.load(tmp_path / "model-00001-of-00001.safetensors")


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"weight_map": 3}', '{"weight_map": {"a": []}}', "{", '{"a": "\x00']
)
def test_an_index_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    _refuse(tmp_path / "model.safetensors.index.json")


def test_folders(tmp_path: Path) -> None:
    for name, said in (
        ("saved_model.pb", "a TensorFlow SavedModel folder"),
        ("data.pkl", "an unpacked PyTorch file"),
        ("model.safetensors", "use a file in it: model.safetensors"),
    ):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_bytes(b"")
        assert said in _refuse(folder)


@pytest.mark.filterwarnings("ignore")
def test_quantised_weights(tmp_path: Path) -> None:
    layers = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    dynamic = torch.ao.quantization.quantize_dynamic(layers, {nn.Linear})
    torch.save(dynamic.state_dict(), tmp_path / "dynamic.pt")
    assert "packed, quantised weights cannot be scored or repaired" in _refuse(tmp_path / "dynamic.pt")
    quantised = torch.quantize_per_tensor(torch.ones(4, 3, 1, 1), 1.0, 0, torch.qint8)
    for name, content in (
        ("alone", {"a.weight": quantised, "b.weight": torch.ones(32, 3, 1, 1)}),
        ("masked", {"a.weight_orig": quantised, "a.weight_mask": quantised, "b.weight": torch.ones(32, 3, 1, 1)}),
    ):
        torch.save(content, tmp_path / f"{name}.pt")
        report = scan(tmp_path / f"{name}.pt")
        assert report.not_covered[0].path.startswith("a")
        with pytest.raises(IncompleteError):  # of the other layer it is not known what it is: there is nothing to edit
            repair(tmp_path / f"{name}.pt", tmp_path / f"{name}2.pt", partial=True)


def test_tensors_without_names(tmp_path: Path) -> None:
    torch.save([torch.ones(2), torch.ones(3)], tmp_path / "m.pt")
    assert "got a list of tensors without names" in _refuse(tmp_path / "m.pt")
