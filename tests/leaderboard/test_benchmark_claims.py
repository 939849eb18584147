"""Claims: what was written is read back, and what is none is refused with its file's name."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from claim_samples import claim, grid, large

from unbackdoor.errors import DataError, OutputError
from unbackdoor.leaderboard import check_folder, read_digests, read_grids, write_grid, write_report
from unbackdoor.leaderboard.claim_folder import merged

CURVES = {"images": 1, "layers": [], **{n: {"per_image": [], "per_layer": []} for n in ("pearson", "spearman")}}


def test_grids_survive_the_disk(tmp_path):
    sample = large()
    write_grid(tmp_path, sample)
    [found] = read_grids(tmp_path)
    assert sorted(found.claims, key=lambda c: c.key) == sorted(sample.claims, key=lambda c: c.key)
    assert (found.name, found.cells, found.done, found.left) == (sample.name, sample.cells, sample.done, sample.left)


def test_the_same_cell_replaces_itself_and_others_stay(tmp_path):
    a, b = "a" * 32, "b" * 32
    write_report(tmp_path, [grid(claim(acc=90, key=a), claim(acc=70, dtype="float32", key=b))])
    write_report(tmp_path, [grid(claim(acc=80, key=a))])
    [found] = read_grids(tmp_path / "claims")
    assert {c.key: c.acc.percent for c in found.claims} == {a: 80.0, b: 70.0}
    write_report(tmp_path, [grid(claim(acc=None, failed="no luck", key=a))])
    [found] = read_grids(tmp_path / "claims")
    assert (found.done, found.failed) == (2, ())  # a result stays where the same cell fails elsewhere


def test_claims_of_no_cell_of_the_grid_are_in_no_mean(tmp_path):
    """As when a default or a stage's code has changed since."""
    old = claim(acc=10, key="0" * 32)
    write_report(tmp_path, [grid(old)])
    [shown] = write_report(tmp_path, [grid(claim(acc=80, key="a" * 32), cells=2, keys=("a" * 32, "b" * 32))])
    assert (shown.done, shown.left, shown.strays, len(shown.claims)) == (1, 1, 1, 2)
    assert "10.00" not in (tmp_path / "tables.md").read_text()
    assert "belong to no cell, and are left out: 1" in (tmp_path / "tables.md").read_text()


def test_machines_with_a_data_set_each_add_up_in_both_orders(tmp_path):
    """Each knows the keys of its own data set alone."""
    a, b = (
        grid(claim(data=name, key=key * 32), cells=2, keys=(key * 32,), data={name: digest})
        for name, key, digest in (("cifar10", "a", "1"), ("gtsrb", "b", "2"))
    )
    for folder, order in (("ab", (a, b)), ("ba", (b, a))):
        for one in order:
            [shown] = write_report(tmp_path / folder, [one])
        assert (shown.cells, shown.done, shown.strays) == (2, 2, 0)
        assert read_digests(tmp_path / folder / "claims") == {"cifar10": "1", "gtsrb": "2"}


def test_other_versions_of_a_data_set_are_refused_before_anything_is_written(tmp_path):
    one, other = (grid(claim(key=k * 32), keys=(k * 32,), data={"cifar10": k}, name=k) for k in "ab")
    write_report(tmp_path / "out", [one])
    before = sorted(path.name for path in (tmp_path / "out").rglob("*"))
    with pytest.raises(DataError, match="another version of 'cifar10'"):
        write_report(tmp_path / "out", [other])
    with pytest.raises(DataError, match="another version of 'cifar10'"):
        write_report(tmp_path / "out", [replace(one, data={"cifar10": "c"})])
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == before


def test_a_file_that_was_named_by_hand_stays_as_it_is(tmp_path):
    write_report(tmp_path, [grid(claim(), cells=2)])
    mine = claim(method="clp")
    (tmp_path / "claims" / "sample" / "mine.json").write_text(mine.to_json())
    for _ in range(2):
        [shown] = write_report(tmp_path, [grid(claim(), cells=2)])
        assert {c.method for c in shown.claims} == {"lpp", "clp"}
    assert len(list((tmp_path / "claims" / "sample").iterdir())) == 3


def test_a_copied_claim_is_no_second_measurement(tmp_path):
    write_grid(tmp_path, grid(claim()))
    [path] = [p for p in tmp_path.glob("*/*.json") if p.name != "grid.json"]
    path.with_name("copy (1).json").write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="same cell"):
        read_grids(tmp_path)
    with pytest.raises(DataError, match="name it"):
        write_report(tmp_path / "none", [merged(tmp_path, grid(claim()))])
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"acc": {"hits": 2, "total": 1}}, "acc: expected"),
        ({"acc": {"hits": 0, "total": 0}}, "acc: expected"),
        ({"acc": 0.9}, "acc: expected"),
        ({"seed": "0"}, "seed: expected int"),
        ({"seed": True}, "seed: expected int"),
        ({"kind": "guess"}, "kind: expected one of"),
        ({"der": 1.5}, "der: expected a share"),
        ({"rate": None}, "expected a rate with an attack"),
        ({"asr ": 1}, "unknown key 'asr '"),
        ({"schema_version": 2}, "schema_version 1, got 2"),
        ({"acc": None}, "expected 'acc', or 'failed'"),
        ({"recipe": ""}, "recipe: expected a text"),
        ({"key": "machine-A-1"}, "key: expected 32 hexadecimal digits"),
        ({"seconds": -1}, "seconds: expected no less than 0"),
        ({"schema_version": True}, "schema_version 1, got True"),
        ({"method": "none"}, "expected a method of a repair"),
        ({"failed": "no luck"}, "expected a reason and no result"),
        ({"before": {"hits": {"hits": 1, "total": 2}, "total": {"hits": 1, "total": 2}}}, "before: expected acc"),
        ({"failed": ""}, "failed: expected a reason"),
        ({"before": {"hits": {"hits": 1, "total": 2}}}, "before: expected acc, asr, ra, recall"),
        ({"before": {"acc": {"hits": 9, "total": 10}, "asr": {"hits": 9, "total": 10}}, "der": 0.5}, "its counts say"),
        ({"correlation": {"x": 1}}, "correlation: expected"),
        ({"layers": ["x"]}, "layers[0]: expected object, got str"),
        ({"layers": [{"path": "a", "scores": [1.0], "pruned_high": [1]}]}, "layers[0]: expected pruned channels to be"),
        ({"layers": [{"path": "a", "scores": [1.0, "b"], "pruned_high": []}]}, "layers[0].scores[1]: expected float"),
        ({"acc": {"hits": 1, "total": 2, "value": 0.5}}, "acc: unknown key 'value'"),
        ({"seconds": 10**400}, "seconds: expected"),
        ({"note": "\ud800"}, "expected a claim in JSON"),
    ],
)
def test_what_is_no_claim_is_refused_by_name(tmp_path, change, said):
    write_grid(tmp_path, grid(claim()))
    [path] = [p for p in tmp_path.glob("*/*.json") if p.name != "grid.json"]
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError) as caught:
        read_grids(tmp_path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b'{"acc": NaN}', b'{"settings": {"x": 1e400}}', b"[" * 100_000, b"\xff\xfe"]
)
def test_broken_files_are_refused_by_name(tmp_path, content):
    write_grid(tmp_path, grid(claim()))
    path = tmp_path / "sample" / "broken.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match="broken.json"):
        read_grids(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cells": -1}, "cells: expected int >= 0, got -1"),
        ({"more": 1}, "unknown key 'more'; it has name, title"),
        ({"schema_version": 2}, "schema_version 1"),
        ({"keys": [{}]}, r"keys\[0\]: expected str, got object"),
        ({"name": "other"}, "expected the grid of its folder"),
    ],
)
def test_what_is_no_grid_is_refused_by_name(tmp_path, change, said):
    write_grid(tmp_path, grid(claim()))
    write_grid(tmp_path, grid(claim(), name="second"))
    path = tmp_path / "sample" / "grid.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=said):
        read_grids(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match="beside its claims"):
        read_grids(tmp_path)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="holds other files"):
        check_folder(tmp_path)
    with pytest.raises(OutputError, match="got a file"):
        check_folder(tmp_path / "thesis.tex")
    with pytest.raises(DataError, match="expected claims"):
        read_grids(tmp_path)


def test_two_grids_of_one_name_are_refused(tmp_path):
    with pytest.raises(DataError, match="two of the grids"):
        write_report(tmp_path / "out", [grid(claim()), grid(claim(method="clp"))])


def test_a_report_needs_no_torch(tmp_path):
    write_grid(tmp_path / "claims", large())
    code = (
        "import sys\nfrom unbackdoor.leaderboard import read_grids, write_report\n"
        f"write_report({str(tmp_path / 'out')!r}, read_grids({str(tmp_path / 'claims')!r}))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"index.html", "tables.md", "tables.tex", "results.csv", "claims", "figures"}


def test_the_same_claims_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_report(tmp_path / name, [large()])
    for path in (tmp_path / "a").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes(), path


def test_a_report_of_a_reports_claims_is_the_same_report(tmp_path):
    write_report(tmp_path / "a", [large()])
    write_report(tmp_path / "b", read_grids(tmp_path / "a" / "claims"))
    for path in (tmp_path / "a").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes(), path


def test_a_networks_correlation_and_its_training_have_files_of_their_own(tmp_path):
    trained = claim(kind="training", method="none", asr=95)
    related = claim(kind="correlation", method="none", acc=None, correlation=CURVES)
    for order in ((trained, related), (related, trained)):
        write_grid(tmp_path, grid(*order))
        [found] = read_grids(tmp_path)
        assert sorted(c.kind for c in found.claims) == ["correlation", "training"]
