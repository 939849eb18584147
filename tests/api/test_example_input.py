"""What a network takes, said by the user, wherever its layers are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import unbackdoor as ub
from unbackdoor import checkpoint
from unbackdoor.defences.data_based.ft import FT
from unbackdoor.errors import SettingError
from unbackdoor.inputs import parse_example

CODE = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.n = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
        self.d, self.m = nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16)
        self.f = nn.Linear(32, 4)

    def forward(self, rgb, depth):
        if rgb.shape[0] != depth.shape[0]:
            raise ValueError
        seen = self.n(self.c(rgb)).amax((2, 3)), self.m(self.d(depth)).amax((2, 3))
        return self.f(torch.cat(seen, 1))
"""
EXAMPLE = (torch.rand(2, 3, 16, 16), torch.rand(2, 1, 16, 16))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("two")
    (place / "two.py").write_text(CODE)
    torch.manual_seed(0)
    checkpoint.save(place / "two.pt", network().state_dict())
    return place


def network() -> nn.Module:
    space: dict[str, type[nn.Module]] = {}
    exec(CODE, space)
    return space["Two"]().eval()


def paths(report: ub.Report) -> list[str]:
    return [layer.path for layer in report.layers]


@pytest.mark.parametrize("method", [ub.LPP(), ub.CLP()])
def test_an_example_is_enough_in_memory(method: ub.LPP | ub.CLP) -> None:
    model = network()
    for report in (
        method(model, example=EXAMPLE).report,
        method.plan(model, example=EXAMPLE).report(),
        ub.scan(model, example=EXAMPLE, method=method),
    ):
        assert paths(report) == ["c", "d"]
        assert report.gap is None
        assert [layer.norm for layer in report.layers] == ["n", "m"]
    assert set(ub.channel_lipschitz(model, example=EXAMPLE)) == {"c", "d", "f"}
    assert method(model).report.gap is not None


def test_inputs_by_keyword() -> None:
    example = {"depth": EXAMPLE[1], "rgb": EXAMPLE[0]}
    assert paths(ub.LPP()(network(), example=example).report) == ["c", "d"]


def test_a_graph_wins_over_an_example() -> None:
    model = network()
    graph = ub.layer_graph(model, EXAMPLE)
    assert paths(ub.LPP().plan(model, graph=graph, example=torch.zeros(1)).report()) == ["c", "d"]
    assert set(ub.channel_lipschitz(model, graph=graph, example="nonsense")) == {"c", "d", "f"}


def test_an_example_is_enough_for_files(folder: Path, tmp_path: Path) -> None:
    arch = f"{folder / 'two.py'}:Two"
    assert ub.scan(folder / "two.pt", arch=arch).gap is not None
    example = parse_example("3x16x16,1x16x16")
    assert paths(ub.scan(folder / "two.pt", arch=arch, example=example)) == ["c", "d"]
    report = ub.repair(folder / "two.pt", tmp_path / "out.pt", arch=arch, example=example)
    assert (paths(report), report.gap) == (["c", "d"], None)
    assert set(checkpoint.load(tmp_path / "out.pt").tensors) == set(network().state_dict())


def test_without_an_example_the_report_says_that_one_may_help(folder: Path) -> None:
    said = ub.scan(folder / "two.pt", arch=f"{folder / 'two.py'}:Two").not_covered[0].reason
    assert "--input 3x32x32" in said


def test_an_example_without_a_network_is_refused(folder: Path) -> None:
    with pytest.raises(SettingError, match=r"--input .* needs a network to run.*; give the network with --arch"):
        ub.scan(folder / "two.pt", example=EXAMPLE)


def test_data_based_methods_take_one_too() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.n, self.f = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            if x.shape[0] < 1:
                raise ValueError
            return self.f(self.n(self.c(x)).relu().mean((2, 3)))

    generator = torch.Generator().manual_seed(0)
    given = (torch.rand(12, 3, 8, 8), torch.arange(12) % 4)
    method = FT(epochs=1, batch_size=8)
    report = method(Branches(), *given, generator=generator, example=torch.rand(2, 3, 8, 8)).report
    assert len(report.stages) == 1


class TestWords:
    """`--input`."""

    def test_sizes_and_kinds(self) -> None:
        image, tokens, mask = parse_example("3x32x16, 10:int,10:bool")
        assert (image.shape, image.dtype) == ((2, 3, 32, 16), torch.float32)
        assert (tokens.shape, tokens.dtype) == ((2, 10), torch.int64)
        assert (mask.shape, mask.dtype) == ((2, 10), torch.bool)
        assert not any(bool(tensor.any()) for tensor in (image, tokens, mask))
        assert len(parse_example("7")) == 1

    @pytest.mark.parametrize(
        "text",
        ["", ",", "3x", "x3", "3x32x", "axb", "3x32x32:double", "3;3", "-3x4", "3x32,", "3.5x2", "3x3:int:int", "٣x3x",
         "3x0x2", "99999x99999x99999", "9" * 400],
    )  # fmt: skip
    def test_what_is_no_size_is_refused_in_one_line(self, text: str) -> None:
        with pytest.raises(SettingError, match=r"^--input .*: expected .*, got ") as caught:
            parse_example(text)
        assert len(str(caught.value).splitlines()) == 1
