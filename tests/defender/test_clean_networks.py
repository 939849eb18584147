"""A network compared with clean ones: z and p by hand, and what is said where they do not suffice."""

import math
import random

import pytest

from unbackdoor.defender.clean_networks import ALPHA, CleanNetwork, CleanNetworks, Verdict, clean_networks, judge
from unbackdoor.defender.look import WITNESSES


def known(*largest: dict[str, float | None], classes: int = 10, running: bool = True) -> CleanNetworks:
    return CleanNetworks(
        networks=[
            CleanNetwork(data="d", arch="a", classes=classes, running_statistics=running, largest=one)
            for one in largest
        ]
    )


def of_one(values: list[float]) -> CleanNetworks:
    return known(*({"head": value} for value in values))


def judged(scores: dict[str, list[float | None]], clean: CleanNetworks, running: bool = True) -> Verdict:
    return judge(scores, running_statistics=running, known=clean)


def test_z_and_p_by_hand() -> None:
    # Mean 4 and deviation 2 of 2, 4, 6, 2, 6 (squares 4, 0, 4, 4, 4 over 4).
    clean = of_one([2, 4, 6, 2, 6])
    found = judged({"head": [8, 1, None]}, clean)
    assert found.standard == {"head": (2.0, -1.5, None)}
    assert found.statistic == 2
    # Against the other four: 6 lies (6 - 3.5) / sqrt(11 / 3) = 1.31 above, and is the largest.
    assert found.limit == pytest.approx(2.5 / math.sqrt(11 / 3))
    assert (found.p, found.alpha, found.least, found.honest) == (1 / 6, 1 / 6, 1 / 6, 5)
    assert found.suspects == (0,)
    assert "p rests on 5 honest networks only: it cannot be smaller than 0.167" in found.notes[0]
    # z = 1.25: two are larger.
    less = judged({"head": [6.5, 1, 0]}, clean)
    assert (less.p, less.suspects) == (3 / 6, ())


def test_the_witness_that_stands_out_counts() -> None:
    clean = known(*({"head": 1.0 + i, "stimulation": 10.0 + i, "reconstruction": 3.0} for i in range(5)))
    found = judged({"head": [1, 1, 1], "stimulation": [1, 1, 20], "reconstruction": [9, 1, 1]}, clean)
    assert found.suspects == (0, 2)  # (9 - 3) / .25 and (20 - 12) / 1.58: the smallest deviation is .25
    assert found.statistic == 24
    assert found.standard["stimulation"][2] == pytest.approx(8 / math.sqrt(2.5))


def test_clean_networks_are_judged_by_the_witnesses_that_could_look() -> None:
    clean = known(*({"head": float(i), "stimulation": None if i < 3 else 5.0} for i in range(8)))
    assert judged({"head": [20.0]}, clean).honest == 8
    assert judged({"stimulation": [20.0]}, clean).honest == 5
    assert judged({"stimulation": [20.0]}, clean).suspects == (0,)


def test_alpha_is_five_percent_where_there_are_enough() -> None:
    clean = of_one([float(i) for i in range(39)])
    found = judged({"head": [1000.0, 0.0]}, clean)
    assert (found.alpha, found.p, found.honest) == (ALPHA, 1 / 40, 39)
    assert found.notes == ()
    # One of 39 may lie above: 38 (z 2.0 against the others) does, and 37 is the limit.
    between = judged({"head": [37.9, 0.0]}, clean)
    assert between.p is not None
    assert between.p <= ALPHA
    assert between.suspects == (0,)


@pytest.mark.parametrize("count", [4, 9, 19, 60])
def test_p_and_the_limit_agree(count: int) -> None:
    draw = random.Random(count)
    clean = of_one([draw.gauss(2, 1) for _ in range(count)])
    for _ in range(200):
        found = judged({"head": [draw.gauss(3, 2) for _ in range(3)]}, clean)
        assert found.p is not None
        assert bool(found.suspects) == (found.p <= found.alpha)


def test_as_many_honest_networks_are_suspected_as_alpha_says() -> None:
    draw = random.Random(0)
    alarms = 0
    for _ in range(400):
        clean = of_one([draw.gauss(2, 1) for _ in range(19)])
        alarms += bool(judged({"head": [draw.gauss(2, 1)]}, clean).suspects)
    assert alarms / 400 < ALPHA + 0.035


def test_what_it_cannot_tell() -> None:
    few = judged({"head": [9.0]}, of_one([1, 2, 3]))
    assert (few.p, few.statistic is None, few.suspects) == (None, False, ())
    assert few.notes == ("expected 4 or more honest networks to compare with, have 3",)
    none = judged({}, of_one([1, 2, 3, 4]))
    assert (none.p, none.notes) == (None, ("no witness could look at this network",))
    assert judged({"head": [None, None]}, of_one([1, 2, 3, 4, 5])).p is None
    assert judged({"margin": [1.0]}, of_one([1, 2, 3, 4, 5])).p is None


def test_unlike_networks_are_said() -> None:
    clean = of_one([1, 2, 3, 4])
    notes = judged({"head": [1.0] * 11}, clean, running=False).notes
    assert any("11 classes, and the honest networks have 10 at most" in note for note in notes)
    assert any("no norm with running statistics, unlike the honest networks" in note for note in notes)


def test_those_that_ship_can_be_read() -> None:
    for row in clean_networks().networks:
        assert set(row.largest) == set(WITNESSES)
        assert row.classes > 1
