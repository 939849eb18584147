"""Every attack, defence and detector names its paper, in one form."""

import inspect
import re

import pytest

from unbackdoor.attacks import ATTACKS
from unbackdoor.defences.table import DEFENCES
from unbackdoor.detectors import DETECTORS
from unbackdoor.papers import BACKDOORBENCH, Paper, Published

KINDS = {name: registry[name] for registry in (ATTACKS, DEFENCES, DETECTORS) for name in registry}


@pytest.mark.parametrize(
    ("authors", "names", "short"),
    [
        ((), "", "ICLR 2025"),
        (("Wu",), "Wu", "Wu, ICLR 2025"),
        (("Wu", "Wang"), "Wu & Wang", "Wu & Wang, ICLR 2025"),
        (("Wu", "Wang", "Li"), "Wu, Wang & Li", "Wu et al., ICLR 2025"),
    ],
)
def test_forms(authors: tuple[str, ...], names: str, short: str) -> None:
    paper = Paper(authors=authors, title="T", venue="ICLR", year=2025, url="https://arxiv.org/abs/1")
    assert (paper.names, paper.short) == (names, short)
    assert paper.cited == ", ".join(filter(None, (names, "T, ICLR 2025, https://arxiv.org/abs/1")))


@pytest.mark.parametrize("name", KINDS)
def test_every_method_has_one(name: str) -> None:
    paper = KINDS[name].paper
    if paper is None:
        witnesses = {"head", "stimulation", "channels", "leaves", "reconstruction"}
        assert name in {"best", "erase", "forget", "ft", "pushing"} | witnesses
        return
    assert paper.authors or name == "lpp"
    assert all(re.fullmatch(r"\w[\w-]*", author) for author in paper.authors)
    assert paper.title == paper.title.strip().removesuffix(".")
    assert 2017 <= paper.year <= 2025
    assert re.fullmatch(r"https://(arxiv\.org/abs/\d{4}\.\d{5}|\S+)", paper.url)
    assert paper.short in (inspect.getdoc(inspect.getmodule(KINDS[name])) or "").partition("\n\n")[0]


#: What records of the benchmark hold.
SOURCES = {
    "anp": "Wu & Wang, NeurIPS 2021",
    "best": "no paper of its own",
    "bnp": "Zheng et al., NeurIPS 2022",
    "clp": "Zheng et al., ECCV 2022",
    "ep": "Zheng et al., NeurIPS 2022",
    "erase": "no paper of its own",
    "forget": "no paper of its own",
    "pushing": "no paper of its own",
    "fp": "Liu et al., RAID 2018; settings of BackdoorBench, 2022",
    "ft": "no paper of its own; settings of BackdoorBench, 2022",
    "ibau": "Zeng et al., ICLR 2022",
    "lpp": "submitted to ICLR 2025",
    "nad": "Li et al., ICLR 2021",
    "rnp": "Li et al., ICML 2023",
}


def test_what_records_say_of_a_methods_source_stays() -> None:
    assert {name: DEFENCES[name].source() for name in sorted(DEFENCES)} == SOURCES


def test_settings_of_another_source_are_said() -> None:
    class Old(Published):
        paper = None
        settings_from = BACKDOORBENCH

    assert Old.source() == "no paper of its own; settings of BackdoorBench, 2022"
