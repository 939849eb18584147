"""A detector in one file, without an edit elsewhere: it needs nothing but the network."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

import unbackdoor as ub
from cli_runs import PACKAGED, refuse, run
from unbackdoor.defender.case import Case
from unbackdoor.detectors import DETECTORS
from unbackdoor.detectors.base import Found
from unbackdoor.detectors.data_free.base import DataFreeDetector
from unbackdoor.findings import ClassFinding
from unbackdoor.settings import setting


@dataclass(frozen=True, kw_only=True)
class Rows(DataFreeDetector):
    """Look for the class whose row of the classifier's weights has the largest mean."""

    name: ClassVar[str] = "rows"
    title: ClassVar[str] = "Means of the classifier's rows"
    paper: ClassVar[None] = None

    factor: float = setting(2.0, "the largest mean is suspicious above this many deviations", least=0)

    def inspect(self, case: Case, model: nn.Module) -> Found:
        """One mean a class."""
        graph = case.layers()
        means = model.get_parameter(graph[str(graph.classifier)].weight).detach().flatten(1).mean(1)
        far = (means - means.mean()) / means.std()
        return tuple(
            ClassFinding(label=label, suspicious=z > self.factor, values={"mean": float(means[label]), "deviations": z})
            for label, z in enumerate(far.tolist())
        ), ()


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    DETECTORS.add(Rows.name, Rows)
    yield
    del DETECTORS._entries[Rows.name]


def test_it_needs_no_data() -> None:
    words = ("detect", PACKAGED, "--method", "rows:factor=0", "--quiet")
    done = run(*words)
    assert done.code == 1  # of ten numbers one lies above their mean
    assert "no images" in done.out
    read = json.loads(run(*words, "--format", "json").out)
    assert (read["images"], read["digest"], len(read["classes"])) == (0, None, 10)
    assert run("detect", PACKAGED, "--method", "rows:factor=100", "--quiet").code == 0


def test_in_python() -> None:
    model = ub.load_model(PACKAGED)
    found = Rows(factor=0.0)(model, generator=torch.Generator())
    assert found.images == 0
    assert found.suspicious
    from_file = ub.detect(PACKAGED, detector=Rows(factor=0.0))
    assert from_file.classes == found.classes


def test_those_that_need_images_say_so() -> None:
    said = refuse("detect", PACKAGED, "--method", "nc", "--quiet")
    assert "nc needs clean images: give a data set with --data" in said
