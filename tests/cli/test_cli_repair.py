"""`unbackdoor repair`: exit codes 0, 2 and 3, what is written, and that nothing is written where that is promised."""

import json
import os
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


@pytest.fixture
def source(tiny_net: Build, tmp_path: Path) -> Path:
    """A small file with one outlier channel, conv1's third."""
    state = tiny_net(channels=16).state_dict()
    state["conv1.weight"][3] *= 50
    path = tmp_path / "in.pt"
    checkpoint.save(path, state)
    return path


@pytest.fixture
def preact(tmp_path: Path) -> Path:
    """A file whose layers cannot be paired without the network."""
    path = tmp_path / "preact.safetensors"
    checkpoint.save(path, parse_arch("preactresnet18:width=4").build().state_dict())
    return path


def _names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


@pytest.mark.parametrize("suffix", ["pt", "safetensors", "pth", "SAFETENSORS"])
def test_a_repaired_file_is_written_and_read_back(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    before, output = source.read_bytes(), f"out.{suffix}"
    done = run("repair", "in.pt", "-o", output)
    assert (done.code, done.err) == (0, f"{output}: written and read back\n")
    assert f"written to    {output}" in done.out
    assert "1 outlier channel in 1 of 2 layers." in done.out
    assert source.read_bytes() == before
    assert _names(tmp_path) == {"in.pt", output}
    assert run("diff", "in.pt", output).out.splitlines()[0] == "bn1.weight: 1 of 16 channels: 3"


def test_the_report_says_what_was_done(source: Path, tmp_path: Path) -> None:
    record = json.loads(run("repair", source, "-o", tmp_path / "out.pt", "--format", "json").out)
    assert (record["action"], record["output"]) == ("repair", str(tmp_path / "out.pt"))
    assert [layer["pruned_high"] for layer in record["layers"]] == [[3], []]


def test_a_dry_run_writes_nothing_and_says_the_same(source: Path, tmp_path: Path) -> None:
    dry = run("repair", source, "--dry-run", "--format", "json")
    assert (dry.code, dry.err) == (0, "")
    assert _names(tmp_path) == {"in.pt"}
    wet = run("repair", source, "-o", tmp_path / "out.pt", "--format", "json")
    assert {**json.loads(dry.out), "action": "repair", "output": str(tmp_path / "out.pt")} == json.loads(wet.out)


def test_a_dry_run_of_a_file_of_any_name(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source.rename(tmp_path / "dry-run.safetensors")
    monkeypatch.chdir(tmp_path)
    assert run("repair", "dry-run.safetensors", "--dry-run").code == 0


def test_a_dry_run_refuses_the_output_that_a_run_would_refuse(source: Path, tmp_path: Path) -> None:
    assert "is the input file" in refuse("repair", source, "-o", source, "--dry-run")
    assert "expected a name that ends in" in refuse("repair", source, "-o", tmp_path / "out.txt", "--dry-run")


def test_what_could_not_be_paired_is_not_written_without_partial(source: Path, tmp_path: Path) -> None:
    state = dict(checkpoint.load(source).tensors)
    checkpoint.save(source, {**state, "attention.in_proj_weight": torch.rand(12, 4)}, overwrite=True)
    output = tmp_path / "out.pt"
    done = run("repair", source, "-o", output)
    assert done.code == 3
    (line,) = done.err.splitlines()
    assert "could not be read or paired (the first is" in line
    assert "nothing was written" in line
    assert "INCOMPLETE" in done.out
    assert _names(tmp_path) == {source.name}
    assert run("repair", source, "--dry-run").code == 3
    assert run("repair", source, "--dry-run", "--partial").code == 0
    done = run("repair", source, "-o", output, "--partial")
    assert (done.code, done.err) == (0, f"{output}: written and read back\n")
    assert "INCOMPLETE" in done.out
    assert run("diff", source, output).out.splitlines()[0] == "bn1.weight: 1 of 16 channels: 3"


def test_where_nothing_can_be_edited_partial_writes_nothing(preact: Path, tmp_path: Path) -> None:
    """A network whose layers cannot be paired, one without norms, and a file of other things."""
    plain, other = tmp_path / "plain.pt", tmp_path / "other.pt"
    checkpoint.save(plain, parse_arch("vgg19:width=4").build().state_dict())
    checkpoint.save(other, {"a": torch.ones(1)})
    before = _names(tmp_path)
    for source in (preact, plain, other):
        for words in (["-o", tmp_path / "out.pt"], ["-o", tmp_path / "out.pt", "--partial"]):
            done = run("repair", source, *words)
            assert done.code == 3
            assert "nothing was written; no layer that can be edited was found" in done.err
            assert "written and read back" not in done.err
        assert run("repair", source, "--dry-run", "--partial").code == 3
    assert "no layer of the network was scored" in run("repair", other, "-o", tmp_path / "out.pt").err
    assert _names(tmp_path) == before
    done = run("repair", preact, "-o", tmp_path / "out.safetensors", "--arch", "preactresnet18:width=4")
    assert done.code == 0


def test_a_repair_of_the_classifier_alone_is_no_whole_one(tmp_path: Path) -> None:
    """A perceptron: LPP scores its hidden layer only if asked, and the classifier step alone is left."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\ndef net():\n"
        "    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))\n"
    )
    source, output = tmp_path / "in.pt", tmp_path / "out.pt"
    checkpoint.save(source, nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)).state_dict())
    arch = ["--arch", f"{tmp_path / 'net.py'}:net"]
    assert run("repair", source, "-o", output, *arch).code == 3
    assert not output.exists()
    assert run("repair", source, "--dry-run", "--partial", *arch).code == 3
    for words in (["repair"], ["defend", "--method", "lpp"]):
        done = run(words[0], source, *words[1:], "-o", output, "--partial", "--force", *arch)
        assert done.code == 3
        assert "written and read back; no channel of it was repaired, the classifier alone was edited" in done.err
        assert "Only the classifier can be repaired" in " ".join(done.out.split())
    assert run("diff", source, output).out.splitlines()[0].startswith("2.weight: 1 of 3 channels")
    done = run("repair", source, "-o", output, "--layers", "all", "--force", *arch)
    assert done.code == 0
    assert "alone" not in done.err


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn", "complex64"])
def test_weights_of_a_kind_that_is_not_repaired(source: Path, tmp_path: Path, dtype: str) -> None:
    state = dict(checkpoint.load(source).tensors)
    state["conv2.weight"] = torch.ones_like(state["conv2.weight"]).to(getattr(torch, dtype))
    checkpoint.save(source, state, overwrite=True)
    done = run("repair", source, "-o", tmp_path / "out.pt")
    assert done.code == 3
    assert f"the first is 'conv2': its weight is stored as {dtype}" in done.err
    for suffix in ("pt", "safetensors"):
        assert run("repair", source, "-o", tmp_path / f"out.{suffix}", "--partial").code == 0
        written = checkpoint.load(tmp_path / f"out.{suffix}").tensors
        assert written["conv2.weight"].dtype == getattr(torch, dtype)
        assert not written["bn1.weight"][3]


@pytest.mark.parametrize("method", [["--method", "clp"], ["--method", "clp", "--u", "2"], ["--layers", "all"]])
def test_other_methods_and_settings(source: Path, tmp_path: Path, method: list[str]) -> None:
    assert run("repair", source, "-o", tmp_path / "out.pt", *method).code == 0
    assert not checkpoint.load(tmp_path / "out.pt").tensors["bn1.weight"][3]


def test_quiet(source: Path, tmp_path: Path) -> None:
    assert run("repair", source, "-o", tmp_path / "out.pt", "--quiet").err == ""


@pytest.mark.parametrize("form", ["text", "json", "html", "sarif"])
def test_the_report_goes_to_a_file(source: Path, tmp_path: Path, form: str) -> None:
    report = tmp_path / "report"
    done = run("repair", source, "-o", tmp_path / "out.pt", "--format", form, "--report", report)
    assert (done.code, done.out) == (0, "")
    assert report.read_text() == run("repair", source, "-o", tmp_path / "out.pt", "--format", form, "--force").out
    assert "already exists" in refuse("repair", source, "-o", tmp_path / "other.pt", "--report", report)
    assert not (tmp_path / "other.pt").exists()


def test_the_report_of_what_is_incomplete_goes_to_the_file_too(preact: Path, tmp_path: Path) -> None:
    words = ["repair", preact, "-o", tmp_path / "out.pt", "--report", tmp_path / "report"]
    assert (run(*words).code, _names(tmp_path)) == (3, {preact.name, "report"})


def test_an_output_that_exists_is_left_without_force(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.pt"
    output.write_bytes(b"mine")
    assert "already exists and was not changed; use --force" in refuse("repair", source, "-o", output)
    assert output.read_bytes() == b"mine"
    assert run("repair", source, "-o", output, "--force").code == 0
    assert checkpoint.load(output).tensors


@POSIX
@pytest.mark.parametrize("option", ["-o", "--report"])
@pytest.mark.parametrize("how", ["same path", "another path", "symlink", "hard link", "link to a link"])
def test_the_input_is_never_the_output(source: Path, tmp_path: Path, option: str, how: str) -> None:
    before, link = (source.read_bytes(), source.stat().st_mtime_ns), tmp_path / "link.pt"
    match how:
        case "same path":
            link = source
        case "another path":
            (tmp_path / "folder").mkdir()
            link = tmp_path / "folder" / ".." / "in.pt"
        case "symlink":
            link.symlink_to("in.pt")
        case "hard link":
            link.hardlink_to(source)
        case _:
            (tmp_path / "middle.pt").symlink_to(source)
            link.symlink_to("middle.pt")
    others = [] if option == "-o" else ["-o", tmp_path / "out.pt"]
    for force in ([], ["--force"]):
        line = refuse("repair", source, *others, option, link, *force)
        assert "is the input file, which is never modified; choose another name" in line
    assert (source.read_bytes(), source.stat().st_mtime_ns) == before
    assert not (tmp_path / "out.pt").exists()


@POSIX
def test_a_read_only_input_in_a_read_only_folder(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stranger"
    folder.mkdir()
    source = source.rename(folder / "in.pt")
    source.chmod(0o400)
    folder.chmod(0o500)
    try:
        assert run("repair", source, "-o", tmp_path / "out.pt").code == 0
        assert _names(folder) == {"in.pt"}
    finally:
        folder.chmod(0o700)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected -o OUT, the name of the repaired file, or --dry-run"),
        (["-o", "out.txt"], "expected a name that ends in .safetensors, .pt"),
        (["-o", "out"], "got ''"),
        (["-o", "out.onnx"], "got '.onnx'"),
        (["-o", ""], "got ''"),
        (["-o", "no/such/out.pt"], "there is no folder"),
        (["-o", "in.pt/out.pt"], "there is no folder"),
        (["-o", "out.pt", "--report", "no/such/report"], "there is no folder"),
        (["-o", "out.pt", "--report", "out.pt"], "is the repaired file's name"),
        (["-o", "out.pt", "--key", "ema"], "holds no state dict under 'ema'"),
        (["-o", "out.pt", "--arch", "resnet18:width=2"], "is not resnet18:width=2"),
        (["-o", "out.pt", "--fc-weights", "lots"], "--fc-weights"),
        (["-o", "out.pt", "--upscale", "perhaps"], "--upscale"),
        (["-o", "out.pt", "more.pt"], "unexpected extra argument"),
        (["-o"], "requires an argument"),
        (["-o", "x" * 300 + ".pt"], "File name too long"),
    ],
)
def test_what_is_typed_wrong(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refuse("repair", "in.pt", *words)
    assert _names(tmp_path) == {"in.pt"}


@POSIX
def test_devices_pipes_and_folders(source: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "null.pt").symlink_to("/dev/null")
    for name, what in (("pipe.pt", "a device or a pipe"), ("null.pt", "a device or a pipe"), ("folder.pt", "a folder")):
        assert f"got {what}" in refuse("repair", source, "--force", "-o", tmp_path / name)
        assert f"got {what}" in refuse("repair", tmp_path / name, "-o", tmp_path / "out.pt")
    assert "got a device or a pipe" in refuse("repair", source, "-o", tmp_path / "out.pt", "--report", "/dev/null")
    assert not (tmp_path / "out.pt").exists()


def test_a_file_of_several_state_dicts(source: Path, tmp_path: Path) -> None:
    state = dict(checkpoint.load(source).tensors)
    torch.save({"model": state, "ema": {k: v.clone() for k, v in state.items()}, "epoch": 3}, source)
    line = refuse("repair", source, "-o", tmp_path / "out.pt")
    assert "holds several state dicts: 'model', 'ema'; choose one with --key" in line
    assert run("repair", source, "-o", tmp_path / "out.pt", "--key", "ema").code == 0
    out = torch.load(tmp_path / "out.pt", weights_only=True)
    assert out["model"]["bn1.weight"][3]
    assert not out["ema"]["bn1.weight"][3]
    assert out["epoch"] == 3
    assert run("repair", source, "-o", tmp_path / "out.SAFETENSORS", "--key", "ema").code == 0
    assert run("diff", source, tmp_path / "out.pt", "--key", "model").code == 0


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_the_same_input_gives_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    output = tmp_path / f"out.{suffix}"
    results = []
    for _ in range(2):
        done = run("repair", PACKAGED, "-o", output, "--force", "--format", "json")
        assert done.code == 0
        results.append((output.read_bytes(), done.out))
    assert results[0] == results[1]


def test_a_repaired_file_is_still_named_in_its_metadata(tmp_path: Path) -> None:
    assert run("repair", PACKAGED, "-o", tmp_path / "out.safetensors").code == 0
    done = run("scan", tmp_path / "out.safetensors", "--format", "json")
    assert json.loads(done.out)["arch"] == "resnet18:width=16,num_classes=10"
