"""`unbackdoor scan`: exit codes 0, 1, 2 and 3, the four formats, and what is refused."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from cli_runs import PACKAGED, refuse, run
from unbackdoor import checkpoint
from unbackdoor.models import parse_arch

Build = Callable[..., nn.Module]
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX links, pipes or devices")


TIED = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(16, 16, 1, bias=False), nn.Conv2d(16, 16, 1, bias=False)
        self.b.weight = self.a.weight
        self.fc = nn.Linear(16, 4, bias=False)

    def forward(self, x):
        return self.fc(self.b(self.a(x)).mean((2, 3)))

def build():
    return Net()
"""


@pytest.fixture
def plain(tiny_net: Build, tmp_path: Path) -> Path:
    """A small file in which no channel stands out."""
    path = tmp_path / "plain.pt"
    checkpoint.save(path, tiny_net().state_dict())
    return path


@pytest.fixture
def garbage(tmp_path: Path) -> Path:
    path = tmp_path / "garbage.pt"
    path.write_bytes(b"garbage garbage")
    return path


def test_outliers_are_findings() -> None:
    done = run("scan", PACKAGED)
    assert (done.code, done.err) == (1, "")
    assert "architecture  resnet18:width=16,num_classes=10" in done.out
    assert "9 outlier channels in 7 of 20 layers." in done.out
    assert not re.search(r"\b(safe|clean)\b", done.out)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], 0),
        (["--fail-on", "near"], 1),
        (["--fail-on", "near", "--band", "0"], 0),
        (["--upper", "1"], 1),
        (["--upper", "1", "--fail-on", "never"], 0),
        (["--upper", "2.5", "--band", "1.5"], 0),
        (["--upper", "2.5", "--band", "1.5", "--fail-on", "near"], 1),
        (["--upper", "inf", "--lower", "-inf", "--fail-on", "near"], 0),
        (["--method", "clp"], 0),
        (["--method", "clp", "--u", "1"], 1),
    ],
)
def test_exit_code_0_or_1(plain: Path, words: list[str], code: int) -> None:
    done = run("scan", plain, *words)
    assert (done.code, done.err) == (code, "")


def test_outliers_that_cannot_be_cut_are_findings_too(tmp_path: Path) -> None:
    """Two convolutions with one weight: neither can be edited without the other."""
    weight = torch.rand(16, 16, 1, 1) + 1
    weight[3] *= 50
    torch.save({"a.weight": weight, "b.weight": weight, "fc.weight": torch.rand(4, 16)}, tmp_path / "tied.pt")
    builder = tmp_path / "tied.py"
    builder.write_text(TIED)
    words = ["scan", tmp_path / "tied.pt", "--arch", f"{builder}:build", "--quiet"]
    done = run(*words, "--format", "json")
    assert done.code == 1
    assert json.loads(done.out)["totals"]["immutable"] == 1
    text = run(*words).out
    assert "1 outlier channel in 1 of 1 layer; 1 cannot be pruned." in text
    assert "No outlier channels were found" not in text


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize(
    "tensors",
    [
        {"a": torch.tensor(1.0), "b": torch.tensor(2)},
        {"a": torch.ones(4)},
        {"fc.weight": torch.ones(10, 5), "fc.bias": torch.zeros(10)},
        {"bn.weight": torch.ones(3), "bn.bias": torch.ones(3), "bn.running_mean": torch.ones(3)},
    ],
    ids=["scalars", "vectors", "one Linear", "half a norm"],
)
def test_a_file_of_which_nothing_is_scored_is_never_reported_as_fine(
    tmp_path: Path, suffix: str, tensors: dict[str, torch.Tensor]
) -> None:
    path = tmp_path / f"m.{suffix}"
    checkpoint.save(path, tensors)
    done = run("scan", path)
    assert done.code == 3
    assert "No layer was scored, so this report says nothing about the model." in done.out


def test_what_cannot_be_paired_is_incomplete(tmp_path: Path) -> None:
    """On PreActResNet-18 names mislead, and a safetensors file keeps no order: nothing is guessed."""
    path = tmp_path / "m.safetensors"
    checkpoint.save(path, parse_arch("preactresnet18:width=4").build().state_dict())
    done = run("scan", path)
    assert done.code == 3
    assert "INCOMPLETE" in done.out
    assert "give the architecture with --arch" in done.out
    assert run("scan", path, "--arch", "preactresnet18:width=4").code in (0, 1)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_vgg19_without_norms_is_scored_and_what_is_not_known_is_said(tmp_path: Path, suffix: str) -> None:
    """Any of its layers may make the answers, for all that names say."""
    path = tmp_path / f"m.{suffix}"
    checkpoint.save(path, parse_arch("vgg19:width=4").build().state_dict())
    done = run("scan", path, "--format", "json")
    assert done.code == 3
    record = json.loads(done.out)
    assert len(record["layers"]) == len(record["not_covered"]) == 16
    assert "its role is not known: answers" in record["not_covered"][0]["reason"]
    assert run("scan", path, "--arch", "vgg19:width=4").code in (0, 1)


def test_the_rows_of_a_convolution_that_makes_the_answers_are_not_cut(tmp_path: Path) -> None:
    """A file of a network whose last layer is a convolution, one of its classes with larger weights."""
    state = parse_arch("torchvision:squeezenet1_1:num_classes=43").build().state_dict()
    state["classifier.1.weight"][7] *= 3
    checkpoint.save(tmp_path / "in.pt", state)
    assert run("scan", tmp_path / "in.pt").code == 3
    for words in ([], ["--partial"]):
        done = run("repair", tmp_path / "in.pt", "-o", tmp_path / "out.pt", *words)
        assert done.code == 3
        assert "nothing was written" in done.err
    assert not (tmp_path / "out.pt").exists()


def test_vectors_of_unknown_meaning_are_said(tmp_path: Path) -> None:
    state = {"conv.weight": torch.rand(32, 3, 3, 3), "gamma": torch.ones(32), "head.weight": torch.rand(10, 32)}
    checkpoint.save(tmp_path / "m.pt", state)
    done = run("scan", tmp_path / "m.pt")
    assert done.code == 3
    assert "may multiply channels" in " ".join(done.out.split()).replace("!! ", "")
    assert "gamma" in done.out


@pytest.mark.parametrize(
    ("value", "said"), [("600.5", "a whole number of weights"), ("100000", "expected at most 128, the input features")]
)
def test_a_count_of_classifier_weights_is_a_whole_number_of_what_there_is(value: str, said: str) -> None:
    assert said in refuse("scan", PACKAGED, "--fc-weights", value)


def test_weights_that_are_not_numbers_are_findings(tiny_net: Build, tmp_path: Path) -> None:
    state = tiny_net(channels=16).state_dict()
    state["conv2.weight"][5, 0, 0, 0] = float("nan")
    state["bn1.weight"][2] = float("-inf")
    checkpoint.save(tmp_path / "nan.pt", state)
    done = run("scan", tmp_path / "nan.pt", "--format", "json")
    assert done.code == 1
    layers = {layer["path"]: layer for layer in json.loads(done.out)["layers"]}
    assert (layers["conv1"]["not_finite"], layers["conv2"]["not_finite"]) == ([2], [5])
    assert layers["conv2"]["scores"][5] is None
    assert "NaN" not in done.out
    assert "Infinity" not in done.out


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint16", "bool", "complex64", "float8_e4m3fn"])
def test_weights_of_a_kind_that_is_not_scored_are_said(tiny_net: Build, tmp_path: Path, dtype: str) -> None:
    state = tiny_net().state_dict()
    state["conv2.weight"] = torch.ones_like(state["conv2.weight"]).to(getattr(torch, dtype))
    checkpoint.save(tmp_path / "m.pt", state)
    done = run("scan", tmp_path / "m.pt")
    assert done.code == 3
    assert f"stored as {dtype} (Conv2d: conv2)" in done.out


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_quantised_weight_is_said(tiny_net: Build, tmp_path: Path) -> None:
    state = tiny_net().state_dict()
    state["conv2.weight"] = torch.quantize_per_tensor(state["conv2.weight"], 0.1, 0, torch.qint8)
    torch.save(state, tmp_path / "m.pt")
    done = run("scan", tmp_path / "m.pt")
    assert done.code == 3
    assert "stored as qint8 (Conv2d: conv2)" in done.out


def test_the_formats() -> None:
    record = json.loads(run("scan", PACKAGED, "--format", "json").out)
    assert record["schema_version"] == 1
    assert record["totals"]["pruned"] == 9
    sarif = json.loads(run("scan", PACKAGED, "--format", "sarif").out)
    assert (sarif["version"], len(sarif["runs"])) == ("2.1.0", 1)
    page = run("scan", PACKAGED, "--format", "html").out
    assert page.startswith("<!DOCTYPE html>")
    assert page.endswith("</html>\n")


@pytest.mark.parametrize("form", ["text", "json", "html", "sarif"])
def test_the_same_file_gives_the_same_bytes(form: str) -> None:
    first, second = (run("scan", PACKAGED, "--format", form) for _ in range(2))
    assert first == second
    assert first.code == 1


def test_several_files(plain: Path) -> None:
    done = run("scan", plain, PACKAGED)
    assert done.code == 1
    first, second = (line for line in done.out.splitlines() if line.startswith("unbackdoor scan: "))
    assert (first.endswith("plain.pt"), second.endswith("model.safetensors")) == (True, True)
    whole = json.loads(run("scan", plain, PACKAGED, "--format", "json").out)
    assert [report["source"] for report in whole["reports"]] == [str(plain), str(PACKAGED)]
    assert len(json.loads(run("scan", plain, PACKAGED, "--format", "sarif").out)["runs"]) == 2


def test_one_broken_file_among_others_is_said_and_the_others_are_read(plain: Path, garbage: Path) -> None:
    done = run("scan", garbage, plain, PACKAGED, "--format", "json")
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert str(garbage) in done.err
    assert [report["source"] for report in json.loads(done.out)["reports"]] == [str(plain), str(PACKAGED)][:2]


def test_sarif_says_what_could_not_be_read(plain: Path, garbage: Path, tmp_path: Path) -> None:
    done = run("scan", garbage, plain, "--format", "sarif")
    assert done.code == 2
    invocations = {
        run["artifacts"][0]["location"]["uri"]: run["invocations"][0] for run in json.loads(done.out)["runs"]
    }
    assert {Path(uri).name: invocation["executionSuccessful"] for uri, invocation in invocations.items()} == {
        garbage.name: False,
        plain.name: True,
    }
    for words in (("scan", garbage), ("repair", garbage, "-o", tmp_path / "out.pt")):
        done = run(*words, "--format", "sarif")
        (only,) = json.loads(done.out)["runs"]
        (notification,) = only["invocations"][0]["toolExecutionNotifications"]
        assert (done.code, len(done.err.splitlines())) == (2, 1)
        assert notification["message"]["text"] in done.err
    assert not (tmp_path / "out.pt").exists()


def test_json_of_several_says_what_could_not_be_read(plain: Path, garbage: Path) -> None:
    (failed,) = json.loads(run("scan", garbage, plain, "--format", "json").out)["failed"]
    assert failed["source"] == str(garbage)
    assert failed["error"] in run("scan", garbage, plain).err
    assert json.loads(run("scan", plain, plain, "--format", "json").out)["failed"] == []


def test_only_broken_files(garbage: Path, tmp_path: Path) -> None:
    done = run("scan", garbage, tmp_path / "missing.pt", "--output", tmp_path / "report.txt")
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 2)
    assert not (tmp_path / "report.txt").exists()


def test_incomplete_goes_before_findings(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "scalar.pt", {"a": torch.tensor(1.0)})
    assert run("scan", PACKAGED, tmp_path / "scalar.pt").code == 3


def test_a_page_is_of_one_model() -> None:
    assert "--format html: expected one model, got 2; scan them one by one" in refuse(
        "scan", PACKAGED, PACKAGED, "--format", "html"
    )


def test_the_report_goes_to_a_file(plain: Path, tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    done = run("scan", plain, "--format", "json", "--output", target)
    assert (done.code, done.out, done.err) == (0, "", f"{target}: written\n")
    assert target.read_text() == run("scan", plain, "--format", "json").out
    assert "already exists and was not changed; use --force" in refuse("scan", plain, "--output", target)
    assert json.loads(target.read_text())
    done = run("scan", plain, "--output", target, "--force", "--quiet")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert target.read_text().startswith("unbackdoor scan: ")


@POSIX
@pytest.mark.parametrize("how", ["itself", "symlink", "hard link"])
def test_the_report_never_replaces_the_model(plain: Path, tmp_path: Path, how: str) -> None:
    before = plain.read_bytes()
    target = tmp_path / "report.txt"
    {
        "itself": lambda: None,
        "symlink": lambda: target.symlink_to(plain),
        "hard link": lambda: target.hardlink_to(plain),
    }[how]()
    line = refuse("scan", PACKAGED, plain, "--force", "--output", plain if how == "itself" else target)
    assert "is the input file, which is never modified" in line
    assert plain.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Missing argument 'PATH...'"),
        (["missing.pt"], "missing.pt: the file does not exist"),
        (["."], ".: expected a model file, got a folder"),
        ([PACKAGED, "--fail-on", "all"], "--fail-on"),
        ([PACKAGED, "--format", "xml"], "--format"),
        ([PACKAGED, "--method", "fp"], "--method"),
        ([PACKAGED, "--upper", "much"], "--upper"),
        ([PACKAGED, "--upper", "-1"], "upper: expected a number from 0 to inf, got -1.0"),
        ([PACKAGED, "--upper", "nan"], "upper: expected a number"),
        ([PACKAGED, "--lower", "3"], "lower: expected a number from -inf to 0, got 3.0"),
        ([PACKAGED, "--fc-weights", "-1"], "fc_weights: expected a number"),
        ([PACKAGED, "--correction", "2"], "correction"),
        ([PACKAGED, "--norm", "l3"], "--norm"),
        ([PACKAGED, "--u", "3"], "--u is not a setting of --method lpp; it has --band"),
        ([PACKAGED, "--method", "clp", "--upper", "3"], "--upper is not a setting of --method clp"),
        ([PACKAGED, "--key", "model"], "a safetensors file holds one state dict only"),
        ([PACKAGED, "--arch", "resnet99"], "unknown network 'resnet99'"),
        ([PACKAGED, "--arch", ""], "unknown network ''"),
        ([PACKAGED, "--arch", "resnet18:width=1000000000000"], "--arch resnet18:width=1000000000000"),
        ([PACKAGED, "--arch", "resnet18:width=0"], "width: expected a whole number from 1"),
        ([PACKAGED, "--arch", "resnet18:depth=3"], "depth"),
        ([PACKAGED, "--arch", "resnet18:width"], "expected key=value, got 'width'"),
        ([PACKAGED, "--arch", "no/such.py:build"], "there is no file no/such.py"),
        ([PACKAGED, "--arch", "\x1b[31m"], "\\x1b[31m"),
        ([PACKAGED, "--output", "no/such/folder/report.txt"], "there is no folder"),
        ([PACKAGED, "--output", "."], "expected a file name, got a folder"),
        (["\x1b[31mred\n.pt"], "\\x1b[31mred"),
    ],
)
def test_what_is_typed_wrong(words: list[object], message: str) -> None:
    assert message in refuse("scan", *words)


@POSIX
def test_what_is_no_file_and_no_folder(tmp_path: Path, plain: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/null", tmp_path / "pipe"):
        assert "got a device or a pipe" in refuse("scan", path)
        assert "got a device or a pipe" in refuse("scan", plain, "--force", "--output", path)
    (tmp_path / "dangling").symlink_to("nothing")
    assert "does not exist" in refuse("scan", tmp_path / "dangling")
    (tmp_path / "loop").symlink_to("loop")
    refuse("scan", tmp_path / "loop")
    assert "File name too long" in refuse("scan", "x" * 5000)


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(b"")
    assert refuse("scan", tmp_path / "m.pt").endswith("m.pt: the file is empty")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"fc.weight": torch.zeros(100, 64), "fc.bias": torch.zeros(100)},
            "try resnet18:width=8,num_classes=100",
        ),
        ({"conv1.weight": torch.zeros(8, 1, 3, 3)}, "(conv1.weight: expected (8, 3, 3, 3), got (8, 1, 3, 3))"),
        ({"fc.weight": torch.tensor(1.0)}, "(fc.weight: expected (10, 64), got ())"),
        ({"extra": torch.zeros(1)}, "tensors that this network does not have: 1 (extra)"),
        ({"fc.bias": None}, "tensors missing from the file: 1 (fc.bias)"),
    ],
)
def test_another_network(tmp_path: Path, change: dict[str, torch.Tensor | None], message: str) -> None:
    state = {**parse_arch("resnet18:width=8").build().state_dict(), **change}
    checkpoint.save(tmp_path / "m.pt", {name: tensor for name, tensor in state.items() if tensor is not None})
    line = refuse("scan", tmp_path / "m.pt", "--arch", "resnet18:width=8")
    assert message in line
    assert ("try" in line) == ("try" in message)


def test_the_hint_leads_to_the_goal(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "m.pt", parse_arch("resnet18:width=4,num_classes=7").build().state_dict())
    line = refuse("scan", tmp_path / "m.pt", "--arch", "resnet18:width=4")
    hint = re.search(r"try (\S+)$", line)
    assert hint
    assert run("scan", tmp_path / "m.pt", "--arch", hint[1]).code in (0, 1)


def test_a_python_file_is_run_only_when_it_is_named_and_that_is_said(tiny_net: Build, tmp_path: Path) -> None:
    layers = "nn.Sequential(nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), nn.Conv2d(16, 2, 1))"
    checkpoint.save(tmp_path / "m.pt", eval(layers).state_dict())
    (tmp_path / "net.py").write_text(
        f"from torch import nn\ndef build(): return {layers}\n"
        "def fails(): raise SystemExit('gone')\ndef other(): return 3\n"
    )
    done = run("scan", tmp_path / "m.pt", "--arch", f"{tmp_path / 'net.py'}:build")
    assert done.code in (0, 1)
    assert done.err == f"running {tmp_path / 'net.py'} (--arch)\n"
    assert run("scan", tmp_path / "m.pt", "--arch", f"{tmp_path / 'net.py'}:build", "--quiet").err == ""
    for name, message in (("fails", "SystemExit: gone"), ("other", "got int"), ("missing", "has no function")):
        done = run("scan", tmp_path / "m.pt", "--arch", f"{tmp_path / 'net.py'}:{name}")
        assert (done.code, done.out) == (2, "")
        assert message in done.err.splitlines()[-1]


def test_a_network_may_be_named_from_a_library(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision").models
    checkpoint.save(tmp_path / "m.safetensors", models.squeezenet1_1(num_classes=3).state_dict())
    done = run("scan", tmp_path / "m.safetensors", "--arch", "torchvision:squeezenet1_1:num_classes=3")
    assert done.code in (0, 1)
    assert "torchvision has no network" in refuse("scan", tmp_path / "m.safetensors", "--arch", "torchvision:nothing")


HOSTILE_NAME = "\x1b[2J<script>alert(1)</script>\n[red]=cmd()\u202e"


@pytest.mark.parametrize("form", ["text", "json", "html", "sarif"])
def test_hostile_names_are_escaped(tmp_path: Path, form: str) -> None:
    checkpoint.save(tmp_path / "m.pt", {f"{HOSTILE_NAME}.weight": torch.rand(8, 8, 1, 1)})
    done = run("scan", tmp_path / "m.pt", "--format", form)
    assert done.code == 3
    assert "\x1b" not in done.out
    assert "\u202e" not in done.out
    if form == "html":
        assert "<script" not in done.out
    if form == "json":
        assert json.loads(done.out)["layers"][0]["path"] == HOSTILE_NAME


def test_help_names_every_setting_and_exit_code() -> None:
    text = run("scan", "--help").out
    for word in ("--upper", "--lower", "--band", "--fc-weights", "--u ", "--fail-on", "--format", "Exit codes: 0"):
        assert word in text
