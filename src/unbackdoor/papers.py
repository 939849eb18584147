"""The paper behind an attack, a defence or a detector, said in one form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A paper.

    Attributes:
        authors: family names in its order; none where it was submitted without names.
        title: as it is printed.
        venue: short: "NeurIPS"; "arXiv" where it appeared nowhere else.
        year: of that.
        url: where it can be read, on arXiv if it is there.
    """

    authors: tuple[str, ...]
    title: str
    venue: str
    year: int
    url: str

    @property
    def short(self) -> str:
        """`Zheng et al., ECCV 2022`."""
        first = f"{self.authors[0]} et al." if len(self.authors) > 2 else self.names
        return ", ".join(filter(None, (first, f"{self.venue} {self.year}")))

    @property
    def cited(self) -> str:
        """Authors, title, venue, year and address."""
        return ", ".join(filter(None, (self.names, self.title, f"{self.venue} {self.year}", self.url)))

    @property
    def names(self) -> str:
        """`Zheng, Tang, Li & Liu`; nothing where there are none."""
        return " & ".join(filter(None, (", ".join(self.authors[:-1]), *self.authors[-1:])))


class Published:
    """What comes out of a paper, or is as old as the field."""

    #: None where it has no paper of its own.
    paper: ClassVar[Paper | None]
    #: Whose settings its defaults are, where they are not the paper's.
    settings_from: ClassVar[Paper | None] = None

    @classmethod
    def source(cls) -> str:
        """Where it comes from, in a few words; records keep them."""
        paper = cls.paper.short if cls.paper else "no paper of its own"
        if cls.settings_from is None:
            return paper
        return f"{paper}; settings of {cls.settings_from.title.partition(':')[0]}, {cls.settings_from.year}"


# Those that several files name.
BACKDOORBENCH = Paper(
    authors=("Wu", "Chen", "Zhang", "Zhu", "Wei", "Yuan", "Shen"),
    title="BackdoorBench: A Comprehensive Benchmark of Backdoor Learning",
    venue="NeurIPS",
    year=2022,
    url="https://arxiv.org/abs/2206.12654",
)
PRE_ACTIVATIONS = Paper(
    authors=("Zheng", "Tang", "Li", "Liu"),
    title="Pre-activation Distributions Expose Backdoor Neurons",
    venue="NeurIPS",
    year=2022,
    url="https://proceedings.neurips.cc/paper_files/paper/2022/hash/76917808731dae9e6d62c2a7a6afb542-Abstract-Conference.html",
)
