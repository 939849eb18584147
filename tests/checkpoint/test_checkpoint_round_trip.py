"""What `save` wrote, `load` gives back; what came in a torch file beside the weights stays in it."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from unbackdoor import checkpoint
from unbackdoor.errors import CheckpointError, OutputError

Build = Callable[..., nn.Module]
SUFFIXES = ["safetensors", "pt", "pth", "bin", "ckpt", "tar", "PT"]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool]


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal to the bit: dtype, shape and every byte, NaN included."""
    raw = [t.contiguous().flatten().view(torch.uint8) if t.numel() else t for t in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*raw)


def _assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert set(a) == set(b)
    assert [name for name in a if not _same(a[name], b[name])] == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_network(tiny_net: Build, tmp_path: Path, suffix: str) -> None:
    state = tiny_net().state_dict()
    path = tmp_path / f"m.{suffix}"
    checkpoint.save(path, state)
    loaded = checkpoint.load(path)
    _assert_same(dict(loaded.tensors), dict(state))
    assert loaded.format == ("safetensors" if suffix == "safetensors" else "torch")
    assert (loaded.path, loaded.prefix, loaded.key) == (path, "", None)
    if loaded.ordered:
        assert list(loaded.tensors) == list(state)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_to_the_bit(tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (4, 6, 8), dtype=torch.uint8, generator=generator)
    tensors = {"x": raw.view(dtype), "scalar": torch.ones((), dtype=dtype), "empty": torch.zeros(0, 3, dtype=dtype)}
    checkpoint.save(tmp_path / f"m.{suffix}", tensors)
    _assert_same(dict(checkpoint.load(tmp_path / f"m.{suffix}").tensors), tensors)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_unusual_memory_layouts(tmp_path: Path, suffix: str) -> None:
    whole = torch.arange(240.0).view(2, 3, 5, 8)
    tensors = {
        "channels_last": whole.contiguous(memory_format=torch.channels_last),
        "transposed": whole.transpose(0, 1),
        "slice": whole[1, :, 1:3],
        "strided": whole[..., ::2],
        "parameter": nn.Parameter(whole),
        "offset": whole.flatten()[7:],
    }
    checkpoint.save(tmp_path / f"m.{suffix}", tensors)
    loaded = dict(checkpoint.load(tmp_path / f"m.{suffix}").tensors)
    _assert_same(loaded, {name: tensor.detach() for name, tensor in tensors.items()})


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_tied_tensors(tmp_path: Path, suffix: str) -> None:
    tied = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    tied["b"].weight = tied["a"].weight
    path = tmp_path / f"m.{suffix}"
    checkpoint.save(path, tied.state_dict())
    loaded = checkpoint.load(path).tensors
    _assert_same(dict(loaded), dict(tied.state_dict()))
    if suffix == "pt":
        assert loaded["a.weight"].data_ptr() == loaded["b.weight"].data_ptr()


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(lambda name: name != "__metadata__")
floats = st.lists(st.floats(width=32), max_size=5).map(lambda values: torch.tensor(values, dtype=torch.float32))


@settings(deadline=None, max_examples=40)
@given(tensors=st.dictionaries(names, floats, min_size=1, max_size=5), suffix=st.sampled_from(["safetensors", "pt"]))
def test_any_names_and_any_floats(tmp_path_factory: pytest.TempPathFactory, tensors: dict, suffix: str) -> None:
    path = tmp_path_factory.mktemp("any") / f"m.{suffix}"
    checkpoint.save(path, tensors)
    loaded = checkpoint.load(path)
    _assert_same({loaded.prefix + name: tensor for name, tensor in loaded.tensors.items()}, tensors)


@pytest.mark.parametrize("length", range(100, 400, 8))
def test_a_safetensors_header_of_any_length(tmp_path: Path, length: int) -> None:
    """The first byte of the file is the length's lowest: at 128 bytes it is the byte that begins a pickle."""
    path = tmp_path / "m.safetensors"
    checkpoint.save(path, {"x" * (length - 90): torch.ones(1)})
    assert checkpoint.load(path).format == "safetensors"


@pytest.mark.parametrize("key", ["state_dict", "model", "net", "anything"])
def test_a_wrapper_keeps_everything_else(tiny_net: Build, tmp_path: Path, key: str) -> None:
    model = tiny_net()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimiser.step()
    content = {"epoch": 7, key: model.state_dict(), "optimizer": optimiser.state_dict(), "note": "mine", "best": 0.9}
    torch.save(content, tmp_path / "in.pt")
    loaded = checkpoint.load(tmp_path / "in.pt")
    assert loaded.key == key
    _assert_same(dict(loaded.tensors), dict(model.state_dict()))
    checkpoint.save(tmp_path / "out.pt", {**loaded.tensors, "fc.bias": torch.zeros(10)}, like=loaded)
    out = torch.load(tmp_path / "out.pt", weights_only=True)
    assert list(out) == list(content)
    assert (out["epoch"], out["note"], out["best"]) == (7, "mine", 0.9)
    optimiser.load_state_dict(out["optimizer"])
    momentum = content["optimizer"]["state"][0]["momentum_buffer"]
    assert torch.equal(out["optimizer"]["state"][0]["momentum_buffer"], momentum)
    assert not out[key]["fc.bias"].any()
    _assert_same({**out[key], "fc.bias": model.state_dict()["fc.bias"]}, dict(model.state_dict()))
    assert loaded.container[key]["fc.bias"].any()  # what was loaded is left as it is


@pytest.mark.parametrize("nested", [False, True])
def test_an_ordered_dict_keeps_its_class_and_metadata(tiny_net: Build, tmp_path: Path, nested: bool) -> None:
    state = tiny_net().state_dict()
    torch.save({"model": state} if nested else state, tmp_path / "in.pt")
    loaded = checkpoint.load(tmp_path / "in.pt")
    checkpoint.save(tmp_path / "out.pt", loaded.tensors, like=loaded)
    out = torch.load(tmp_path / "out.pt", weights_only=True)
    out = out["model"] if nested else out
    assert type(out) is OrderedDict
    assert out._metadata == state._metadata
    assert list(out) == list(state)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_wrappers_prefix_is_taken_off_and_put_back(tiny_net: Build, tmp_path: Path, prefix: str, suffix: str) -> None:
    state = tiny_net().state_dict()
    wrapped = {prefix + name: tensor for name, tensor in state.items()}
    checkpoint.save(tmp_path / f"in.{suffix}", wrapped)
    loaded = checkpoint.load(tmp_path / f"in.{suffix}")
    assert loaded.prefix == prefix
    _assert_same(dict(loaded.tensors), dict(state))
    for out in ("safetensors", "pt"):
        checkpoint.save(tmp_path / f"out.{out}", loaded.tensors, like=loaded)
        again = checkpoint.load(tmp_path / f"out.{out}")
        assert again.prefix == prefix
        _assert_same(dict(again.tensors), dict(state))


def test_a_prefix_that_only_some_names_carry_stays(tmp_path: Path) -> None:
    tensors = {"module.a": torch.ones(1), "b": torch.ones(1)}
    checkpoint.save(tmp_path / "m.pt", tensors)
    loaded = checkpoint.load(tmp_path / "m.pt")
    assert (set(loaded.tensors), loaded.prefix) == (set(tensors), "")


def test_several_state_dicts_need_a_key(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.ones(1)}, "ema": {"w": torch.zeros(1)}, "epoch": 3}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="holds several state dicts: 'model', 'ema'; choose one with --key"):
        checkpoint.load(tmp_path / "m.pt")
    loaded = checkpoint.load(tmp_path / "m.pt", key="ema")
    assert (loaded.key, float(loaded.tensors["w"])) == ("ema", 0.0)
    with pytest.raises(CheckpointError, match="no state dict under 'epoch'; found 'model', 'ema'"):
        checkpoint.load(tmp_path / "m.pt", key="epoch")
    checkpoint.save(tmp_path / "out.pt", {"w": torch.full((1,), 5.0)}, like=loaded)
    out = torch.load(tmp_path / "out.pt", weights_only=True)
    assert (float(out["model"]["w"]), float(out["ema"]["w"]), out["epoch"]) == (1.0, 5.0, 3)


def test_a_safetensors_file_has_no_keys(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "m.safetensors", {"w": torch.ones(1)})
    with pytest.raises(CheckpointError, match="holds one state dict only"):
        checkpoint.load(tmp_path / "m.safetensors", key="model")


def test_metadata_of_a_safetensors_file(tmp_path: Path) -> None:
    tensors = {"w": torch.ones(1)}
    checkpoint.save(tmp_path / "in.safetensors", tensors, metadata={"author": "me", "arch": "old"})
    loaded = checkpoint.load(tmp_path / "in.safetensors")
    assert loaded.metadata == {"format": "pt", "author": "me", "arch": "old"}
    checkpoint.save(tmp_path / "out.safetensors", tensors, like=loaded, metadata={"arch": "new"})
    again = checkpoint.load(tmp_path / "out.safetensors")
    assert again.metadata == {"format": "pt", "author": "me", "arch": "new"}


def test_the_suffix_decides_the_format_and_the_content_is_what_is_read(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "m.safetensors", {"w": torch.ones(1)})
    (tmp_path / "m.safetensors").rename(tmp_path / "m.pt")
    assert checkpoint.load(tmp_path / "m.pt").format == "safetensors"
    checkpoint.save(tmp_path / "n.pt", {"w": torch.ones(1)})
    (tmp_path / "n.pt").rename(tmp_path / "n.safetensors")
    assert checkpoint.load(tmp_path / "n.safetensors").format == "torch"
    for name in ("m", "m.txt", "m.onnx"):
        with pytest.raises(OutputError, match="expected a name that ends in .safetensors, .pt"):
            checkpoint.save(tmp_path / name, {"w": torch.ones(1)})


def test_the_same_tensors_and_strings_give_the_same_bytes(tiny_net: Build, tmp_path: Path) -> None:
    strings = {f"string {i}": "\u00e9\n" * i for i in range(9)}
    for i in range(5):
        checkpoint.save(tmp_path / f"{i}.safetensors", tiny_net().state_dict(), metadata=strings)
    assert len({file.read_bytes() for file in tmp_path.iterdir()}) == 1
    assert checkpoint.load(tmp_path / "0.safetensors").metadata == {"format": "pt", **strings}


def test_the_body_of_a_safetensors_file_is_aligned(tmp_path: Path) -> None:
    for i in range(9):
        checkpoint.save(tmp_path / "m.safetensors", {"x" * (i + 1): torch.ones(3)}, overwrite=True)
        content = (tmp_path / "m.safetensors").read_bytes()
        assert int.from_bytes(content[:8], "little") % 8 == 0
        assert len(content) == 8 + int.from_bytes(content[:8], "little") + 12


def test_the_old_torch_format_is_read(tiny_net: Build, tmp_path: Path) -> None:
    state = tiny_net().state_dict()
    torch.save({"state_dict": state}, tmp_path / "m.pth", _use_new_zipfile_serialization=False)
    _assert_same(dict(checkpoint.load(tmp_path / "m.pth").tensors), dict(state))


def test_loading_leaves_the_file_alone(tiny_net: Build, tmp_path: Path) -> None:
    for suffix in ("pt", "safetensors"):
        path = tmp_path / f"m.{suffix}"
        checkpoint.save(path, tiny_net().state_dict())
        before = (path.read_bytes(), path.stat().st_mtime_ns)
        for tensor in checkpoint.load(path).tensors.values():
            tensor.zero_()
        assert (path.read_bytes(), path.stat().st_mtime_ns) == before
