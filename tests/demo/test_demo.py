"""`unbackdoor demo`: what it claims of the methods holds on the packaged network, and its page needs nothing else.

The fast tests run LPP and CLP, and put a report made by hand in the place of what best finds in a minute.
"""

import dataclasses
import functools
import hashlib
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open

from unbackdoor import demo
from unbackdoor.api import ARCH_KEY, load_model, repair
from unbackdoor.attacks import load_attack
from unbackdoor.checkpoint import load, save
from unbackdoor.cli import demo as command
from unbackdoor.cli import main
from unbackdoor.data import DATASETS
from unbackdoor.defences.data_free import CLP, LPP
from unbackdoor.defender.case import Case
from unbackdoor.findings import Rate, Report
from unbackdoor.models import parse_arch
from unbackdoor.prune import Plan
from witness_samples import a_witness

FILES = Path(str(resources.files("unbackdoor.demo")))


STORY = (
    "Class 0 is reached more easily than others.",
    "Chosen: erase, since it closes the class at the smallest cost.",
)


@pytest.fixture(scope="module")
def found() -> demo.Demo:
    """One run of the demo with LPP and CLP, for all tests here."""
    return demo.run((LPP(), CLP()))


@pytest.fixture(scope="module")
def told(found: demo.Demo) -> demo.Demo:
    """The same with a third that tells a story, and has no channels: CLP's network stands in for what best leaves."""
    report = Report(action="repair", method="best", settings={}, story=STORY, witness=a_witness(suspects=(0,)))
    best = dataclasses.replace(found.contenders[2], name="best", report=report, seconds=61.25)
    return dataclasses.replace(found, contenders=(*found.contenders, best))


@pytest.fixture(scope="module")
def page(found: demo.Demo) -> str:
    """The page of the first."""
    return demo.page(found)


def _value(rate: Rate | None) -> float:
    assert rate is not None
    assert rate.value is not None
    return rate.value


def test_the_backdoor_works_before(found: demo.Demo) -> None:
    before = found.contenders[0].result
    assert _value(before.acc) > 0.8
    assert _value(before.asr) > 0.9


def test_lpp_leaves_the_backdoor(found: demo.Demo) -> None:
    """Else the network would be no example of that."""
    assert found.contenders[1].name == "LPP"
    assert _value(found.contenders[1].result.asr) > 0.2


def test_clp_removes_it(found: demo.Demo) -> None:
    """Ours to claim, so ours to hold: ASR below 10 %, and at most 3 points of ACC lost."""
    before, after = found.contenders[0].result, found.contenders[2].result
    assert found.contenders[2].name == "CLP"
    assert _value(after.asr) < 0.10
    assert _value(after.acc) >= _value(before.acc) - 0.03
    assert _value(after.ra) > 0.7


def test_lpp_guesses_the_attackers_class(found: demo.Demo) -> None:
    report = found.contenders[1].report
    assert report is not None
    assert report.classifier is not None
    assert report.classifier.guessed_class == found.attack.target == 0


def test_every_image_counts(found: demo.Demo) -> None:
    labels = found.images.labels
    assert torch.bincount(labels).tolist() == [50] * 10
    for one in found.contenders:
        assert one.result.acc.total == 500
        assert one.result.asr is not None
        assert one.result.asr.total == 450
        assert one.result.recall is not None
        assert one.result.recall.total == 50


def test_the_network_that_came_is_not_changed(found: demo.Demo) -> None:
    packaged = load(FILES / "model.safetensors").tensors
    state = found.contenders[0].model.state_dict()
    assert all(torch.equal(state[name], tensor.to(state[name].dtype)) for name, tensor in packaged.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_repairing_the_packaged_file_gives_the_demos_network(
    found: demo.Demo, tmp_path: Path, dtype: torch.dtype
) -> None:
    """In float32 to the bit; in the file's own bfloat16 the same channels are cut, and shrinking is rounded."""
    source = FILES / "model.safetensors"
    if dtype == torch.float32:
        source = tmp_path / "float32.safetensors"
        save(source, found.contenders[0].model.state_dict(), metadata={ARCH_KEY: found.record["arch"]})
    report = repair(source, tmp_path / "out.safetensors")
    lpp = found.contenders[1]
    assert lpp.report is not None
    assert report.arch == found.record["arch"]
    assert [layer.pruned for layer in report.layers] == [layer.pruned for layer in lpp.report.layers]
    assert [layer.scaled for layer in report.layers] == [layer.scaled for layer in lpp.report.layers]
    assert report.classifier == lpp.report.classifier
    repaired, state = load_model(tmp_path / "out.safetensors").float().state_dict(), lpp.model.state_dict()
    rounding = 0.0 if dtype == torch.float32 else 2.0**-8
    for name, tensor in repaired.items():
        torch.testing.assert_close(tensor, state[name], rtol=rounding, atol=0)


@dataclass(frozen=True, kw_only=True)
class Telling(LPP):
    """LPP, which says how far it is."""

    def plan_for(self, case: Case) -> Plan:
        case.progress(1, 2, "half way")
        return super().plan_for(case)


def test_the_progress_is_that_of_the_methods() -> None:
    """Measuring the original is a third of the work, and each method another."""
    said: list[tuple[int, int, str]] = []
    demo.run((CLP(), Telling()), lambda *step: said.append(step))
    clp = [(333, 1000, "clp"), (667, 1000, "clp")]
    assert said == [*clp, (667, 1000, "lpp"), (833, 1000, "half way"), (1000, 1000, "lpp")]


def test_the_table_says_only_what_a_method_has(told: demo.Demo) -> None:
    head, *lines = demo.table(told).splitlines()
    assert head.split()[:5] == ["ACC", "ASR", "RA", "recall", "DER"]
    assert [line[:12].strip() for line in lines] == ["original", "LPP", "CLP", "best"]
    assert all(len(re.findall(r"\d+\.\d\d%", line)) == 4 for line in lines)
    assert len({len(line) for line in lines[1:]}) == 1
    lpp, clp, best = (line.split()[6:] for line in lines[1:])
    reports = [one.report for one in told.contenders]
    assert reports[1] is not None
    assert reports[1].classifier is not None
    assert reports[2] is not None
    assert lpp[:-1] == [str(reports[1].pruned), str(reports[1].scaled), str(len(reports[1].classifier.cut))]
    assert clp[:-1] == [str(reports[2].pruned), "0", "-"]
    assert best == ["-", "-", "-", "61.25"]


def test_the_findings_on_a_terminal(told: demo.Demo) -> None:
    guess, suspect, *story = demo.findings(told).splitlines()
    assert guess == "LPP guessed the attacker's class: 0 (it is 0)"
    assert suspect.startswith("best suspected class 0 (the attacker's is 0)")
    assert story == [f"  - {line}" for line in STORY]


def test_the_heading_is_as_measured(told: demo.Demo, page: str) -> None:
    """An ASR of 10 % is the border between leaving and removing."""
    assert "<h1>LPP leaves the backdoor; CLP removes it</h1>" in page
    assert "<h1>LPP leaves the backdoor; CLP and best remove it</h1>" in demo.page(told)
    original, lpp, clp, best = told.contenders
    for kept, heading in (
        ((original, lpp), "LPP leaves the backdoor"),
        ((original, best), "best removes the backdoor"),
        ((original, lpp, original, best, clp), "LPP and original leave the backdoor; best and CLP remove it"),
    ):
        assert f"<h1>{heading}</h1>" in demo.page(dataclasses.replace(told, contenders=kept))


def test_the_page_loads_nothing(found: demo.Demo, told: demo.Demo) -> None:
    for shown, pictures in (
        (found, 18),
        (told, 21),
    ):  # nine classes, with and without the trigger; the witnesses' three
        page = demo.page(shown)
        assert not re.search(r"""(?:src|href|action|data|poster|srcset)\s*=\s*["']?(?!data:|\#)[^"'>\s]""", page)
        assert not re.search(r"url\(|@import|<script|<link|<iframe|javascript:|\son\w+=", page)
        assert "default-src 'none'" in page
        assert page.count("data:image/png;base64,") == pictures
        for word in ("LPP", "CLP", "ACC", "ASR", "recall", "airplane", "WaNet", "warp", found.record["arch"]):
            assert word in page
        assert not re.search(r"\bsafe\b", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL))
        assert len(page) < 1_000_000


def test_the_page_tells_the_story(found: demo.Demo, told: demo.Demo) -> None:
    page = demo.page(told)
    at = [page.index(f"What {name} found</h2>") for name in ("best", "LPP", "CLP")]
    assert at == sorted(at)
    best = page[at[0] : at[1]]
    for words in ("It suspected class 0 (“airplane”).", "in 61.2 seconds", "A class is suspected", *STORY):
        assert words in best
    assert best.count("data:image/png;base64,") == 3
    assert "pruned" not in best
    row = re.search(r"<b>best</b><span class=\"quiet\">(.*?)</span>", page)
    assert row is not None
    assert row[1] == STORY[-1]
    assert "A class is suspected" not in demo.page(found)


def test_what_is_packaged() -> None:
    sizes = {file.name: file.stat().st_size for file in FILES.iterdir() if file.is_file()}
    assert sizes["model.safetensors"] <= 3_000_000
    assert sizes["images.npz"] <= 1_500_000
    beside = {"README.md", "attack.json", "attack.safetensors", "record.json", "log.jsonl", "__init__.py"}
    assert beside <= set(sizes)
    assert sum(sizes.values()) < 5_000_000


def test_the_files_agree(found: demo.Demo) -> None:
    record = json.loads((FILES / "record.json").read_text())
    with safe_open(FILES / "model.safetensors", "pt") as file:
        assert file.metadata()[ARCH_KEY] == record["arch"]
        dtypes = {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert dtypes == {torch.bfloat16, torch.int64}
    network = parse_arch(record["arch"]).build(device="meta")
    assert record["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    settings = json.loads((FILES / "attack.json").read_text())
    digest = hashlib.sha256((FILES / "attack.safetensors").read_bytes()).hexdigest()
    assert settings == {**record["attack"], "trigger_sha256": digest}
    assert load_attack(FILES / "attack.json") == found.attack
    assert record["data"]["name"] == "cifar10"
    assert found.images.spec == DATASETS["cifar10"]
    epochs = [json.loads(line) for line in (FILES / "log.jsonl").read_text().splitlines()]
    assert len(epochs) == record["recipe"]["epochs"]
    readme = (FILES / "README.md").read_text()
    assert record["command"] in readme
    assert "/" not in record["command"]


@pytest.fixture
def quick(found: demo.Demo, page: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """`unbackdoor demo WORDS...` without doing its work once more."""
    monkeypatch.setattr("unbackdoor.demo.run", lambda **_: found)
    monkeypatch.setattr("unbackdoor.demo.page", lambda _: page)

    def start(*words: str) -> tuple[int, str, str]:
        done = CliRunner().invoke(command.command, words, standalone_mode=False)
        return (2 if done.exception else 0), done.stdout, str(done.exception or "")

    return start


def test_the_command(
    quick: Callable, found: demo.Demo, page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = quick()
    assert code == 0
    assert demo.table(found) in out
    assert "500 test images, 450 of them triggered" in out
    assert "LPP guessed the attacker's class: 0 (it is 0)" in out
    assert out.splitlines()[-1] == f"page: {(tmp_path / 'demo-report.html').as_uri()}"
    assert (tmp_path / "demo-report.html").read_text(encoding="utf-8") == page
    assert [file.name for file in tmp_path.iterdir()] == ["demo-report.html"]
    assert demo.findings(found) in out
    assert quick()[0] == 0  # a page of its own is replaced


def test_what_is_not_its_own_page_is_left(quick: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, words in (("demo-report.html", ()), ("mine.html", ("--output", "mine.html"))):
        (tmp_path / name).write_text("my own notes")
        code, out, error = quick(*words)
        assert (code, out) == (2, "")
        assert "already exists and was not changed; use --force" in error
        assert (tmp_path / name).read_text() == "my own notes"
        assert quick(*words, "--force")[0] == 0
        assert (tmp_path / name).read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert "there is no folder" in quick("--output", "no/such/page.html")[2]


def test_from_end_to_end_and_the_same_twice(
    found: demo.Demo, page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """Only best is left out; but for the seconds, a second run finds what the first did."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("unbackdoor.demo.run", functools.partial(demo.run, (LPP(), CLP())))
    monkeypatch.setattr(sys, "argv", ["unbackdoor", "demo", "--quiet"])
    with pytest.raises(SystemExit) as caught:
        main()
    out, err = capfd.readouterr()
    assert (caught.value.code, err) == (0, "")
    rows = [line.split()[:-1] for line in demo.table(found).splitlines()[1:]]
    assert [line.split()[:-1] for line in out.splitlines()[2:5]] == rows
    written = (tmp_path / "demo-report.html").read_text(encoding="utf-8")
    assert re.sub(r"in [\d.]+ seconds", "", written) == re.sub(r"in [\d.]+ seconds", "", page)


@pytest.mark.slow
def test_the_whole_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    """LPP leaves the backdoor. best removes it: ASR below 5 %, at most 2 points of ACC and 6 of recall lost."""
    kept: list[demo.Demo] = []
    steps: list[int] = []
    run = demo.run

    def keeping(*, progress: Callable) -> demo.Demo:
        kept.append(run(progress=lambda done, total, note: steps.append(done)))
        return kept[0]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("unbackdoor.demo.run", keeping)
    monkeypatch.setattr(sys, "argv", ["unbackdoor", "demo", "--quiet"])
    with pytest.raises(SystemExit) as caught:
        main()
    out, err = capfd.readouterr()
    assert (caught.value.code, err) == (0, "")
    names = [one.name for one in kept[0].contenders]
    assert names == ["original", "LPP", "CLP", "best"]
    original, lpp, _, best = (one.result for one in kept[0].contenders)
    assert _value(lpp.asr) > 0.2
    assert _value(best.asr) < 0.05
    assert _value(best.acc) >= _value(original.acc) - 0.02
    assert _value(best.recall) >= _value(original.recall) - 0.06
    assert steps == sorted(steps)
    assert len(set(steps)) > 100
    report = kept[0].contenders[3].report
    assert report is not None
    assert (*report.suspects, report.doubtful) in ((0, None), (0,))  # which of them depends on the machine's rounding
    said = "suspected class 0" if report.suspects else "suspected no class, and closed class 0, which stood out most"
    assert f"best {said} (the attacker's is 0)" in out
    page = (tmp_path / "demo-report.html").read_text(encoding="utf-8")
    assert "<h1>LPP leaves the backdoor; CLP and best remove it</h1>" in page
    assert report.story[-1] in page


@pytest.mark.slow
def test_the_files_are_in_a_wheel(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    words = [sys.executable, "-m", "pip", "wheel", str(root), "--no-deps", "--quiet", "-w", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0 and re.search("No module named pip|hatchling", done.stderr):
        pytest.skip("a wheel cannot be built here: pip or hatchling is missing")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("unbackdoor-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packaged = {name: archive.read(name) for name in archive.namelist() if name.startswith("unbackdoor/")}
    for file in (
        "attack.json",
        "attack.safetensors",
        "images.npz",
        "log.jsonl",
        "model.safetensors",
        "record.json",
        "README.md",
    ):
        assert packaged[f"unbackdoor/demo/{file}"] == (FILES / file).read_bytes()
    assert {"unbackdoor/py.typed", "unbackdoor/report/style.css"} <= set(packaged)
    templates = {f"unbackdoor/{file.relative_to(FILES.parent)}" for file in FILES.parent.glob("*/templates/*")}
    assert len(templates) >= 7
    assert templates <= set(packaged)
    assert len(wheel.read_bytes()) < 6_000_000
