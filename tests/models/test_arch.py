"""What stands behind `--arch`."""

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from unbackdoor.errors import ArchitectureError
from unbackdoor.models import Arch, parse_arch


@pytest.mark.parametrize(
    ("text", "arch"),
    [
        ("resnet18", Arch("own", "resnet18")),
        ("resnet18:width=16", Arch("own", "resnet18", {"width": 16})),
        ("resnet18:width=16,num_classes=3", Arch("own", "resnet18", {"width": 16, "num_classes": 3})),
        ("resnet18:", Arch("own", "resnet18")),
        ("torchvision:resnet18", Arch("torchvision", "resnet18")),
        ("torchvision:resnet18:num_classes=3", Arch("torchvision", "resnet18", {"num_classes": 3})),
        ("timm:resnet50", Arch("timm", "resnet50")),
        ("timm:vit_tiny_patch16_224:drop_rate=0.1", Arch("timm", "vit_tiny_patch16_224", {"drop_rate": 0.1})),
        ("net.py:build", Arch("file", "build", {}, Path("net.py"))),
        ("a/b c/net.py:build:n=3", Arch("file", "build", {"n": 3}, Path("a/b c/net.py"))),
        ("C:\\nets\\net.py:build", Arch("file", "build", {}, Path("C:\\nets\\net.py"))),
    ],
)
def test_every_form(text: str, arch: Arch) -> None:
    assert parse_arch(text) == arch
    assert str(arch) == text.removesuffix(":")
    assert parse_arch(str(arch)) == arch
    assert arch.runs_code == (arch.source == "file")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown network ''"),
        ("resnet19", "unknown network 'resnet19'; expected one of resnet18, .*torchvision:NAME"),
        ("ResNet18", "unknown network"),
        ("torchvision:", "expected torchvision:NAME"),
        ("timm:", "expected timm:NAME"),
        ("timm", "expected timm:NAME"),
        ("hub:resnet18", "unknown network 'hub'"),
        ("https://example.org/x.pt", "unknown network 'https'"),
        ("net.py", "to run a file write path/to/file.py:function"),
        ("net.py:", "to run a file write"),
        ("net.py:a.b", "to run a file write"),
        ("resnet18:width", "expected key=value, got 'width'"),
        ("resnet18:width=1,width=2", "width is given twice"),
        ("timm:hf-hub:user/model", "expected key=value"),
        ("\x1b[31mred", "'.x1b.31mred'"),
        ("resnet18\n", "unknown network"),
    ],
)
def test_anything_else_is_refused(text: str, message: str) -> None:
    with pytest.raises(ArchitectureError, match=message) as caught:
        parse_arch(text)
    assert str(caught.value).isprintable()


@given(st.text(max_size=30) | st.text(":=,.py/resnet18timm", max_size=30))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        assert isinstance(parse_arch(text), Arch)
    except ArchitectureError as error:
        assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resnet18:widht=16", "widht"),
        ("resnet18:width=0", "width: expected a whole number from 1, got 0"),
        ("resnet18:width=-1", "width: expected a whole number from 1, got -1"),
        ("resnet18:width=1.5", "expected a whole number"),
        ("resnet18:width=true", "expected a whole number"),
        ("resnet18:width=wide", "expected a whole number from 1, got 'wide'"),
        ("vgg19:num_classes=0", "num_classes: expected a whole number"),
    ],
)
def test_bad_options_of_own_networks(text: str, message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        parse_arch(text).build(device="meta")


def test_with_options_adds_and_replaces() -> None:
    arch = parse_arch("resnet18:width=16").with_options(width=8, num_classes=3)
    assert str(arch) == "resnet18:width=8,num_classes=3"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("torchvision:resnet19", "torchvision has no network 'resnet19'"),
        ("torchvision:resnet18:weights=DEFAULT", "weights: networks are built with fresh weights only"),
        ("torchvision:resnet18:pretrained=true", "pretrained: networks are built with fresh"),
        ("torchvision:lraspp_mobilenet_v3_large:pretrained_backbone=true", "pretrained_backbone: networks"),
        ("torchvision:resnet18:nonsense=1", "nonsense"),
    ],
)
def test_torchvision_refusals(text: str, message: str) -> None:
    pytest.importorskip("torchvision")
    with pytest.raises(ArchitectureError, match=message):
        parse_arch(text).build(device="meta")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("timm:resnet_50", "timm has no network 'resnet_50'; similar: "),
        ("timm:resnet18:pretrained=true", "pretrained: networks are built with fresh weights only"),
        ("timm:resnet18:checkpoint_path=x.pth", "checkpoint_path: networks are built with fresh"),
        ("timm:[", r"timm has no network '\['"),
    ],
)
def test_timm_refusals(text: str, message: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ArchitectureError, match=message):
        parse_arch(text).build(device="meta")


@pytest.mark.parametrize("text", ["torchvision:resnet18", "torchvision:lraspp_mobilenet_v3_large", "timm:resnet18"])
def test_a_librarys_network_is_built_without_any_download(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(text.split(":")[0])
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("a download"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("a download"))
    assert isinstance(parse_arch(text).build(device="meta"), nn.Module)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_missing_library_is_named(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ArchitectureError, match=rf"needs {library}, .*pip install 'unbackdoor\[zoo\]'"):
        parse_arch(f"{library}:resnet18").build()


FILE = """
import torch
def build(width=2):
    return torch.nn.Linear(width, 3)
def nothing():
    return 7
def broken():
    raise KeyError("first line\\nsecond line")
def leaves():
    raise SystemExit(0)
number = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(FILE)
    return path


def test_a_file_of_the_users_own(file: Path) -> None:
    model = parse_arch(f"{file}:build:width=5").build()
    assert isinstance(model, nn.Linear)
    assert model.in_features == 5


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nothing", "expected a torch.nn.Module, got int"),
        ("broken", "KeyError"),
        ("leaves", "SystemExit: 0"),
        ("number", "has no function 'number'"),
        ("missing", "has no function 'missing'"),
    ],
)
def test_a_function_that_builds_no_network(file: Path, function: str, message: str) -> None:
    with pytest.raises(ArchitectureError, match=message) as caught:
        parse_arch(f"{file}:{function}").build()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", ["import sys; sys.exit(0)", "def (", "1 / 0", "import no_such_module_at_all"])
def test_a_file_that_does_not_run(tmp_path: Path, content: str) -> None:
    (tmp_path / "net.py").write_text(content)
    with pytest.raises(ArchitectureError, match="net.py failed: "):
        parse_arch(f"{tmp_path / 'net.py'}:build").build()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError, match="there is no file"):
        parse_arch(f"{tmp_path / 'net.py'}:build").build()


def test_parsing_runs_nothing(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    parse_arch(f"{tmp_path / 'net.py'}:build")
    assert not (tmp_path / "canary").exists()
