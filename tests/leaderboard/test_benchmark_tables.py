"""Means, intervals, the best, and the paper beside it, against sums done by hand."""

import math
from dataclasses import replace

import pytest
from claim_samples import claim, grid, large

from unbackdoor.leaderboard import Count
from unbackdoor.leaderboard.paper import printed, printed_seconds
from unbackdoor.leaderboard.plots import figures, front
from unbackdoor.leaderboard.tables import Line, Mean, Sheet, acc_minus_asr, effectiveness, tables, variants
from unbackdoor.leaderboard.text import both, latex, markdown, notes
from unbackdoor.leaderboard.timing import timing


def test_the_interval_is_students():
    """Against a printed table of t, two-sided at 95 %."""
    printed_t = {1: 12.7062, 2: 4.3027, 3: 3.1824, 5: 2.5706, 10: 2.2281, 30: 2.0423, 60: 2.0003, 200: 1.9719}
    for df, t in printed_t.items():
        deviation = math.sqrt(1 / (df + 1) * (1 - 1 / (df + 1)) / df)
        assert Mean.of([0.0] * df + [1.0]).half == pytest.approx(t * deviation, rel=3e-5)
    found = Mean.of([80.0, 82.0, 87.0])
    assert found.value == 83.0
    assert found.half == pytest.approx(4.3027 * math.sqrt((9 + 1 + 16) / 2 / 3), rel=2e-5)
    assert Mean.of([80.0]).half is None
    assert Mean.of([]) is None


def test_of_two_seeds_both_are_said_as_they_belong_together():
    said = both(entry_of(claim(acc=90, asr=1), claim(acc=70, asr=60, seed=1)))
    assert said == "80.00 / 30.50, runs: 90.00 / 1.00 and 70.00 / 60.00"
    assert said == both(entry_of(claim(acc=70, asr=60, seed=1), claim(acc=90, asr=1)))
    clean = [claim(attack="none", acc=acc, before=85, seed=seed) for seed, acc in ((0, 84), (1, 80))]
    assert both(entry_of(*clean)) == "82.00 (-3.00), runs: 84.00 and 80.00"
    assert both(entry_of(*clean, claim(attack="none", acc=82, before=85, seed=2))) == "82.00 ± 4.97 (-3.00)"
    assert both(entry_of(claim(acc=80, asr=4))) == "80.00 / 4.00"
    assert both(entry_of(claim(acc=80, asr=4), claim(acc=84, asr=None, seed=1))) == "82.00 / 4.00"


def test_the_targets_recall_stands_third_where_it_is_known():
    known = [
        claim(acc=80, asr=4, recall=Count(hits=hits, total=1000), seed=seed) for seed, hits in ((0, 700), (1, 720))
    ]
    assert both(entry_of(known[0])) == "80.00 / 4.00 / 70.00"
    assert both(entry_of(*known)) == "80.00 / 4.00 / 71.00, runs: 80.00 / 4.00 / 70.00 and 80.00 / 4.00 / 72.00"
    # Of two seeds, one made before it was counted: nothing is said of it.
    assert entry_of(known[0], claim(acc=82, asr=6, seed=1)).recall is None
    none = [claim(kind="training", method="none", asr=95, attack=attack) for attack in ("badnet", "bpp")]
    lpp = [claim(acc=80, asr=4, attack=attack, recall=Count(hits=7, total=10)) for attack in ("badnet", "bpp")]
    table = table_of(*none, *lpp)
    assert (table.average_recall(line(table, "lpp")), table.average_recall(line(table, "none"))) == (70.0, None)
    part = table_of(*none, lpp[0], claim(acc=80, asr=4, attack="bpp"))
    assert part.average_recall(line(part, "lpp")) is None  # not known of BPP
    text, old = (markdown([Sheet.of(grid(*claims))]) for claims in ([*none, *lpp], none))
    assert "80.00 / 4.00 / 70.00" in text
    assert ("R_t" in text, "R_t" in old) == (True, False)


def table_of(*claims, **values):
    [found] = tables(grid(*claims, **values))
    return found


def entry_of(*claims):
    [found] = table_of(*claims).entries.values()
    return found


def methods(lines):
    return [x.method for x in lines]


def line(table, method):
    return next(x for x in table.lines if x.method == method)


def test_draws_of_clean_images_are_no_seeds_of_training():
    table = table_of(
        *(claim(method="bnp", clean=0.01, clean_seed=d, seed=s, acc=80 + 10 * s + d) for s in (0, 1) for d in (0, 1, 2))
    )
    [entry] = table.entries.values()
    assert entry.acc.seeds == 2
    assert entry.acc.value == 86.0  # of 81 and 91


def test_methods_that_were_run_on_every_seed_stand_once_more():
    claims = [
        claim(kind="training", method="none", asr=95, seed=0),
        claim(kind="training", method="none", asr=97, seed=1),
        claim(method="bnp", clean=0.01, clean_seed=0, acc=82, asr=1),
        *(claim(method="clp", acc=80, asr=asr, seed=seed) for seed, asr in ((0, 1), (1, 31))),
        *(claim(method="lpp", acc=80, asr=asr, seed=seed) for seed, asr in ((0, 3), (1, 5))),
    ]
    table, part = Sheet.of(grid(*claims)).plain
    assert (table.seed_words, part.seed_words) == ("seed 0", "seeds 0, 1")
    assert [x.method for x in part.lines] == ["none", "clp", "lpp"]
    [column] = part.columns
    assert [methods(t.best(column, acc_minus_asr)) for t in (table, part)] == [["bnp"], ["lpp"]]
    assert [t.average(line(t, "clp"))[1] for t in (table, part)] == [1.0, 16.0]
    assert part.average(line(part, "none"))[1] == 96.0
    assert part.title == f"{table.title} (methods run on every seed)"


SEEDS = {"clp": (0, 1), "lpp": (0, 1), "bnp": (0,)}


def on_seeds(seeds=SEEDS, **values):
    return [
        claim(method=method, asr=95 if method == "none" else 5, seed=seed, **values)
        for method, found in seeds.items()
        for seed in found
    ]


@pytest.mark.parametrize("trained", [(0, 1), (0, 1, 2), (0,)])
def test_seeds_are_those_of_defences_and_the_base_line_always_stands(trained):
    table, part = Sheet.of(grid(*on_seeds({"none": trained, **SEEDS}))).plain
    assert [x.method for x in part.lines] == ["none", "clp", "lpp"]
    assert part.established == table.established
    assert part.average(line(part, "lpp"))[1] == 5.0


def test_a_failure_on_the_clean_network_takes_no_method_out_of_the_part():
    clean = [claim(attack="none", method=m, acc=acc, seed=s) for m, s, acc in (("lpp", 0, 80), ("lpp", 1, 81))]
    failed = claim(attack="none", method="clp", acc=None, failed="ran out of memory", seed=1)
    _, part = Sheet.of(grid(*on_seeds({"none": (0, 1), **SEEDS}), *clean, failed)).plain
    assert [x.method for x in part.lines] == ["none", "clp", "lpp"]


def test_a_column_of_methods_that_are_not_in_the_part_is_left_out():
    sample = grid(*on_seeds({"none": (0, 1), **SEEDS}), claim(method="bnp", attack="wanet"))
    table, part = Sheet.of(sample).plain
    assert [[c.attack for c in t.columns] for t in (table, part)] == [["badnet", "wanet"], ["badnet"]]
    assert "wanet" in markdown([Sheet.of(sample)])
    assert "wanet" in latex([Sheet.of(sample)])


def test_where_nothing_is_established_no_seeds_are_said():
    table = table_of(claim(kind="training", method="none", asr=20), claim(asr=1))
    assert table.seed_words == ""
    assert "| Average | Seconds |" in markdown([Sheet.of(grid(claim(method="none", asr=20), claim(asr=1)))])


def test_where_all_were_run_on_the_same_seeds_no_part_is_shown():
    claims = [claim(method=method, seed=seed, asr=90) for method in ("none", "clp", "lpp") for seed in (0, 1)]
    assert len(Sheet.of(grid(*claims)).plain) == 1
    # One method alone on every seed is no comparison.
    assert len(Sheet.of(grid(*claims[:3], *claims[4:])).plain) == 1


def test_a_rates_table_has_no_row_of_methods_that_were_run_at_other_rates_alone():
    clean = [claim(attack="none", method=method) for method in ("none", "anp", "ft", "lpp")]
    high = [claim(method=method) for method in ("none", "anp", "lpp")]
    low = [claim(method=method, rate=0.01) for method in ("none", "lpp")]
    rows = [[x.method for x in table.lines] for table in tables(grid(*clean, *high, *low))]
    assert rows == [["none", "anp", "ft", "lpp"], ["none", "ft", "lpp"]]  # FT was run on the clean network alone


def test_what_is_special_of_networks_is_said_once():
    note = "taken over from elsewhere"
    claims = [claim(kind="training", method="none", attack=a, note=note) for a in ("badnet", "bpp")]
    table = table_of(*claims, claim(note="of a repair"))
    assert notes(table) == ["badnet of seed 0, bpp of seed 0: taken over from elsewhere."]


def test_what_changed_nothing_is_said():
    rnp = [claim(method="rnp", attack=attack, changed=False) for attack in ("badnet", "bpp")]
    assert notes(table_of(*rnp, claim(changed=True))) == ["RNP changed nothing in any of these networks."]
    assert notes(table_of(rnp[0], claim(method="rnp", attack="bpp", changed=True))) == []
    bnp = claim(method="bnp", changed=False)
    table, part = Sheet.of(grid(*on_seeds({"none": (0, 1), "clp": (0, 1), "lpp": (0, 1)}), bnp)).plain
    assert (notes(table), notes(part)) == (["BNP changed nothing in any of these networks."], [])


def test_the_best_is_asked_of_the_seeds_that_all_share():
    none = claim(kind="training", method="none", asr=95)
    # On seed 0 CLP is better; LPP's other seed would turn that round.
    table = table_of(
        none,
        claim(method="lpp", acc=80, asr=5, der=0.8),
        claim(method="lpp", acc=95, asr=0, der=1.0, seed=1),
        claim(method="clp", acc=84, asr=5, der=0.85),
    )
    [column] = table.columns
    assert methods(table.best(column, acc_minus_asr)) == ["clp"]
    assert methods(table.best(column, effectiveness)) == ["clp"]
    assert table.best(column, lambda c: c.acc.percent if c.seed else None) == ()  # one method alone has that seed


def test_averages_are_over_the_seeds_that_all_share():
    none = [claim(kind="training", method="none", asr=95, seed=seed) for seed in (0, 1)]
    clean = [
        claim(attack="none", method=m, acc=90 - c, before=90, seed=s) for m, c, s in (("lpp", 2, 0), ("clp", 1, 0))
    ]
    clean.append(claim(attack="none", method="lpp", acc=50, before=90, seed=1))
    table = table_of(
        *none,
        *clean,
        claim(method="lpp", acc=80, asr=5, der=0.8),
        claim(method="lpp", acc=90, asr=1, der=1.0, seed=1),
        claim(method="clp", acc=84, asr=6, der=0.85),
    )
    assert table.average(line(table, "lpp")) == pytest.approx((80, 5, 0.8))
    assert table.average(line(table, "clp")) == pytest.approx((84, 6, 0.85))
    assert table.clean_cost(line(table, "lpp")) == pytest.approx(2.0)


def test_other_weights_and_mixtures_are_no_draws_of_one_network():
    half, full = (claim(acc=acc, dtype=dtype) for acc, dtype in ((80, "bfloat16"), (90, "float32")))
    assert len(tables(grid(half, full))) == 2
    table = table_of(*(claim(method="ep", clean=0.05, clean_seed=0, poisoned=p, acc=100 * p) for p in (0.1, 0.5)))
    assert len(table.lines) == 2
    again = claim(acc=80, seed=0, layers=[{"path": "a", "scores": [1.0], "pruned_high": []}])
    [entry] = table_of(claim(acc=80), again).entries.values()
    assert (entry.acc.value, entry.acc.half, len(entry.claims)) == (80.0, None, 1)


def test_methods_on_different_trainings_of_one_cell_are_said():
    trained = claim(kind="training", method="none", acc=85, asr=95)
    [same, other] = (claim(method=m, before=acc) for m, acc in (("lpp", 85), ("clp", 84)))
    assert table_of(trained, replace(same, before={"acc": trained.acc, "asr": trained.asr})).retrained == ()
    table = table_of(trained, replace(same, before={"acc": trained.acc, "asr": trained.asr}), other)
    assert table.retrained == table.columns
    assert "methods were given different trainings" in notes(table)[0]


def test_of_swept_settings_none_is_the_best():
    claims = [claim(method=m, der=0.9) for m in ("lpp", "lpp:upper=2", "lpp:upper=2.5")]
    [table] = variants(grid(claim(kind="training", method="none", asr=95), *claims))
    assert table.winners == {table.columns[0]: ((), ())}


def test_all_that_are_equally_good_are_the_best():
    """ACC - ASR is 85 of the first three; the second by DER only in its fifth digit, the third in its fourth."""
    rates = {"clp": (90, 5, 0.9), "lpp": (91, 6, 0.900004), "bnp": (88, 3, 0.8999), "nad": (89.98, 5, 0.85)}
    found = [claim(method=m, acc=acc, asr=asr, der=der) for m, (acc, asr, der) in rates.items()]
    table = table_of(claim(kind="training", method="none", asr=95), *found)
    by_gap, by_der = table.winners[table.columns[0]]
    assert methods(by_gap) == ["bnp", "clp", "lpp"]
    assert methods(by_der) == ["clp", "lpp"]
    # Over several seeds, too, where a mean of other counts is the same up to rounding.
    seeds = [claim(method=m, acc=80 + lost, asr=5, seed=s) for m in ("clp", "lpp") for s, lost in ((0, 0.1), (1, 0.2))]
    seeds[2], seeds[3] = (claim(method="lpp", acc=80 + lost, asr=5, seed=s) for s, lost in ((0, 0.3), (1, 0.0)))
    table = table_of(*(claim(kind="training", method="none", asr=95, seed=s) for s in (0, 1)), *seeds)
    assert methods(table.best(table.columns[0], acc_minus_asr)) == ["clp", "lpp"]


def test_an_attack_that_does_not_work_is_in_no_average_and_has_no_best():
    table = table_of(
        claim(kind="training", method="none", asr=95),
        claim(kind="training", method="none", attack="wanet", asr=52),
        claim(acc=84, asr=4, der=0.9),
        claim(acc=50, asr=50, attack="wanet", der=0.3),
        claim(method="clp", acc=84, asr=4, der=0.9, attack="wanet"),
    )
    wanet = next(c for c in table.columns if c.attack == "wanet")
    assert [c.attack for c in table.established] == ["badnet"]
    assert table.average(line(table, "lpp")) == (84.0, 4.0, 0.9)
    assert table.average(line(table, "clp")) is None  # not run there
    assert table.best(wanet, acc_minus_asr) == ()


def test_a_failure_is_shown_and_in_no_mean():
    table = table_of(
        claim(kind="training", method="none", asr=95), claim(seed=0, acc=80), claim(seed=1, acc=None, failed="no room")
    )
    entry = table.entries[line(table, "lpp"), table.columns[0]]
    assert (entry.acc.value, entry.acc.half, len(entry.failed)) == (80.0, None, 1)


def test_a_method_with_settings_is_a_line_of_its_own_unless_it_is_swept():
    trained = claim(kind="training", method="none", asr=95)
    given = [claim(method=m) for m in ("ft", "ft:epochs=2", "lpp", "lpp:band=0,upper=2.5", "clp:u=2", "clp:u=4")]
    sample = grid(trained, *given)
    [table] = tables(sample)
    assert methods(table.lines) == ["none", "ft", "ft:epochs=2", "lpp", "lpp:band=0,upper=2.5"]
    assert line(table, "ft:epochs=2").title == "FT, epochs=2"
    assert table.average(line(table, "ft:epochs=2"))[1] == 5.0
    [apart] = variants(sample)
    assert methods(apart.lines) == ["none", "clp:u=2", "clp:u=4"]
    # Settings of one method are one sweep, where one of them takes several values.
    assert variants(grid(trained, *(claim(method=m) for m in ("lpp:upper=2", "lpp:band=0")))) == []
    [apart] = variants(grid(trained, *(claim(method=m) for m in ("lpp:upper=2", "lpp:band=0", "lpp:band=1,upper=2"))))
    assert len(apart.lines) == 4


def test_methods_with_settings_stand_apart():
    sample = large()
    assert not any(":" in x.method for t in tables(sample) for x in t.lines)
    [apart] = variants(sample)
    assert {x.method.partition(":")[0] for x in apart.lines} == {"none", "lpp"}


def test_other_recipes_rates_and_epochs_are_not_mixed():
    claims = [claim(), claim(rate=0.01), claim(recipe="paper"), claim(epochs=60, acc=10)]
    found = tables(grid(*claims))
    assert [(t.recipe, t.rate, len(t.columns)) for t in found] == [
        ("fast", 0.1, 2),
        ("fast", 0.01, 1),
        ("paper", 0.1, 1),
    ]


@pytest.mark.parametrize(
    ("asked", "acc", "asr"),
    [
        (("T1", "cifar10", "resnet18:width=16", "badnet", 0.1, "none", None), 88.79, 94.96),
        (("T1", "cifar10", "resnet18", "badnet", 0.1, "bnp", 0.01), 88.3, 95.29),
        (("T4", "cifar10", "resnet18", "none", None, "lpp", None), 88.93, None),
        (("VGG", "cifar10", "vgg19_bn", "badnet", 0.1, "bnp", 0.01), 89.8, 95.01),  # its table names no share
        (("VGG", "cifar10", "vgg19_bn", "bpp", 0.1, "none", None), None, 95.49),  # a column shifted
    ],
)
def test_printed_figures(asked, acc, asr):
    found = printed(*asked)
    assert (found.acc, found.asr) == (acc, asr)
    assert bool(found.note) == (acc is None)


def test_what_the_paper_has_not_is_not_made_up():
    assert printed("T1", "cifar10", "resnet18", "badnet", 0.1, "anp", 0.01) is None
    assert printed("T1", "cifar10", "resnet18", "badnet", 0.1, "ibau:lr=0.1", 0.01) is None
    assert printed("T1", "cifar10", "resnet18", "badnet", 0.1, "lpp@either_norm", None) is None
    other_reading = printed("T1", "cifar10", "preactresnet18", "badnet", 0.1, "nad@backdoorbench", 0.01)
    assert other_reading == printed("T1", "cifar10", "resnet18", "badnet", 0.1, "nad", 0.01)
    assert other_reading is not None
    assert printed("T1", "cifar10", "resnet18", "badnet", 0.1, "bnp", 0.05) is None
    assert printed("T1", "cifar10", "densenet121", "badnet", 0.1, "lpp", None) is None
    assert printed("T1", "cifar10", "resnet18", "badnet", 0.05, "lpp", None) is None
    assert printed_seconds("cifar10", "lpp") == 0.178
    assert printed_seconds("cifar10", "anp") is None


def test_the_order_of_table_5_is_said_to_hold_or_not():
    [table] = tables(large())
    assert "holds" in timing(table).words
    slow = [claim(method=m, seconds=s, clean=None) for m, s in (("lpp", 3.0), ("clp", 1.0), ("bnp", 2.0))]
    assert "LPP (3 s) is not faster than CLP (1 s)" in timing(table_of(*slow)).words
    assert timing(table_of(*slow[:2])) is None


def test_the_front_holds_what_nothing_beats():
    lines = [Line(name, None, None, name) for name in "abcd"]
    points = list(zip(lines, (1.0, 2.0, 3.0, 2.0), (9.0, 4.0, 5.0, 4.0), strict=True))
    assert [p[0].method for p in front(points)] == ["a", "b", "d"]  # c loses more than b and leaves more; ties stay


def test_every_figure_is_drawn_and_takes_the_pages_colours():
    found = list(figures(Sheet.of(large())))
    titles = " ".join(f.title for f in found)
    for which in (1, 2, 3, 4, 5):
        assert f"Figure {which}" in titles
    assert len({f.name for f in found}) == len(found)
    for figure in found:
        assert figure.name.startswith("sample-")
        assert figure.svg.startswith("<svg")
        assert "var(--ink)" in figure.themed
        assert "#1d1f24" not in figure.themed
