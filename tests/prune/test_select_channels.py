"""Eqs. 7, 8 and the factors of Eq. 9, worked out by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unbackdoor.defences.data_free.lpp import outliers
from unbackdoor.findings.layers import Layer
from unbackdoor.prune import Population, Selection, either

DEFAULTS = {"lower": -3.0, "upper": 3.0, "band": 1.5, "shrink_to": "edge", "upscale": False, "correction": 0}

#: Nine ones and an eleven: mean 2, deviations -1 (nine times) and 9, population variance (9 + 81) / 10 = 9.
TEN = [1.0] * 9 + [11.0]
#: Nine ones and a zero: mean 0.9, variance (9 * 0.01 + 0.81) / 10 = 0.09, std 0.3; the zero lies at -3.
LOW = [1.0] * 9 + [0.0]


def choose(*scores: list[float], **changed: object) -> list[Selection]:
    layers = [
        Layer(path=f"layer{i}", kind="Conv2d", out_channels=len(row), rule="fx", weight=f"layer{i}.weight")
        for i, row in enumerate(scores)
    ]
    tensors = [torch.tensor(row, dtype=torch.float64) for row in scores]
    return select(layers, tensors, **{**DEFAULTS, **changed})


def select(layers: list[Layer], scores: list[torch.Tensor], *, correction: int, **limits: object) -> list[Selection]:
    return outliers(Population(layers, scores, correction=correction), **limits)


def where(mask: np.ndarray) -> list[int]:
    return np.flatnonzero(mask).tolist()


def test_mean_and_population_std() -> None:
    (one,) = choose(TEN)
    assert (one.mean, one.std) == (2.0, 3.0)  # Algorithm 1, lines 7 and 8
    assert (one.lower, one.band, one.upper) == (2 - 9.0, 2 + 1.5 * 3, 2 + 9.0)


def test_sample_std() -> None:
    (one,) = choose(TEN, correction=1)
    assert one.std == pytest.approx(math.sqrt(90 / 9))


def test_above_the_upper_cut_is_pruned_and_on_it_is_not() -> None:
    """Eq. 7: LC_j > mu + u s. At u = 3 the cut is 2 + 9 = 11, exactly the score."""
    (on,) = choose(TEN, upper=3.0)
    assert where(on.high) == []
    assert where(on.near) == []  # Eq. 8 is strict, too: LC_j < mu + u s
    (above,) = choose(TEN, upper=2.99)
    assert where(above.high) == [9]
    assert where(above.near) == []


def test_below_the_lower_cut_is_pruned_and_on_it_is_not() -> None:
    scores = [5.0] * 9 + [2.0]  # mean 4.7, std sqrt((9 * 0.09 + 7.29) / 10) = 0.9: the last lies at -3
    (one,) = choose(scores, lower=-3.001)
    assert (one.mean, one.std) == pytest.approx((4.7, 0.9))
    assert where(one.low) == []
    (one,) = choose(scores, lower=-2.999)
    assert where(one.low) == [9]
    # Exactly on the cut, in numbers that binary can hold: mean 3, std 1, the last two at -1 and +1.
    (one,) = choose([4.0, 2.0], lower=-1.0, upper=math.inf)
    assert (one.mean, one.std, one.lower) == (3.0, 1.0, 2.0)
    assert where(one.pruned) == []


def test_the_band_is_open_on_both_sides() -> None:
    """Eq. 8: mu + (u - b) s < LC_j < mu + u s. The eleven lies at 3."""
    (inside,) = choose(TEN, upper=4.0, band=1.5)  # from 2 + 2.5 * 3 = 9.5 to 14
    assert where(inside.near) == [9]
    (on_its_edge,) = choose(TEN, upper=4.0, band=1.0)  # from 2 + 3 * 3 = 11
    assert where(on_its_edge.near) == []
    (on_its_edge,) = choose(TEN, upper=4.0, band=1.0, shrink_to="mean")
    assert where(on_its_edge.near) == []
    (off,) = choose(TEN, upper=4.0, band=0.0)
    assert where(off.near) == []
    assert off.band == math.inf


def test_near_outliers_go_to_the_edge_or_to_the_mean() -> None:
    """Eq. 9: W_j times mu / LC_j = 2 / 11; by default only to the band's lower edge, 9.5 / 11."""
    (edge,) = choose(TEN, upper=4.0)
    (mean,) = choose(TEN, upper=4.0, shrink_to="mean")
    assert edge.factors.tolist() == [1.0] * 9 + [9.5 / 11]
    assert mean.factors.tolist() == [1.0] * 9 + [2 / 11]


def test_mean_and_std_are_those_before_pruning() -> None:
    """Lines 7 to 11 use the same symbols: the 11 goes, and the 3, now far out among ones, stays."""
    scores = [1.0] * 20 + [3.0, 11.0]
    (first,) = choose(scores, band=0.0)
    assert where(first.pruned) == [21]
    assert first.mean == pytest.approx(34 / 22)
    (second,) = choose(scores[:-1], band=0.0)
    assert where(second.pruned) == [20]


def test_layers_are_measured_apart() -> None:
    small, large = choose(TEN, [100 * x for x in TEN], upper=2.9)
    assert (small.mean, large.mean) == (2.0, 200.0)
    assert where(small.high) == where(large.high) == [9]


def test_a_packed_layer_is_three_populations() -> None:
    layer = Layer(path="qkv", kind="Linear", out_channels=30, rule="fx", weight="qkv.weight", blocks=3)
    scores = torch.tensor([1.0] * 10 + TEN + [7.0] * 10, dtype=torch.float64)
    parts = select([layer], [scores], **{**DEFAULTS, "upper": 2.9})
    assert [part.path for part in parts] == ["qkv[query]", "qkv[key]", "qkv[value]"]
    assert [part.start for part in parts] == [0, 10, 20]
    assert [part.mean for part in parts] == [1.0, 2.0, 7.0]
    assert [where(part.high) for part in parts] == [[], [9], []]


def test_no_layers_no_selections() -> None:
    assert select([], [], **DEFAULTS) == []


class TestWhereTheBandReachesBelowTheMean:
    """upper = 0.5 and band = 1.5: the band goes from -1 to 0.5 standard deviations."""

    scores = (2.0, 4.0, 4.0, 4.0, 6.0)  # mean 4, std sqrt(8 / 5)

    def test_by_default_nothing_is_enlarged(self) -> None:
        (one,) = choose(list(self.scores), upper=0.5, shrink_to="mean")
        assert where(one.high) == [4]
        assert where(one.near) == []  # the fours are at the mean already
        assert one.factors.tolist() == [1.0] * 5
        (one,) = choose([3.0, 3.5, 4.0, 4.5, 5.0], upper=0.75, shrink_to="mean")
        assert where(one.near) == [3]  # 3.5 lies in the band, too
        assert one.factors.tolist() == [1.0, 1.0, 1.0, 4 / 4.5, 1.0]

    def test_as_printed_channels_below_the_mean_are_enlarged(self) -> None:
        (one,) = choose([3.0, 3.5, 4.0, 4.5, 5.0], upper=0.75, shrink_to="mean", upscale=True)
        assert where(one.near) == [1, 3]  # the 4 is at the mean
        assert one.factors.tolist() == [1.0, 4 / 3.5, 1.0, 4 / 4.5, 1.0]

    def test_all_go_to_the_edge(self) -> None:
        (one,) = choose([3.0, 3.5, 4.0, 4.5, 5.0], upper=0.5, shrink_to="edge")
        edge = 4 - math.sqrt(0.5)
        assert where(one.near) == [1, 2]
        assert one.factors[[1, 2]].tolist() == pytest.approx([edge / 3.5, edge / 4.0])

    def test_an_edge_below_zero_is_zero(self) -> None:
        """A negative factor would turn a channel round instead of shrinking it."""
        (one,) = choose([3.0, 3.5, 4.0, 4.5, 5.0], upper=0.5, band=50.0)
        assert one.band < 0
        assert one.factors.tolist() == [0.0, 0.0, 0.0, 1.0, 1.0]

    def test_a_score_of_zero_is_never_divided_by(self) -> None:
        (one,) = choose([0.0, 1.0, 5.0], lower=-math.inf, upper=0.5, band=9.0, shrink_to="mean", upscale=True)
        assert where(one.near) == [1]
        assert one.factors.tolist() == [1.0, 2.0, 1.0]

    def test_pruning_wins_where_both_would_have_a_channel(self) -> None:
        """lower > upper - band: 2 and 3 lie below the lower cut and in the band."""
        (one,) = choose([2.0, 3.0, 4.0, 5.0, 6.0], lower=-0.1, upper=0.6, band=5.0)
        assert where(one.low) == [0, 1]
        assert where(one.high) == [3, 4]
        assert where(one.near) == [2]


class TestDegenerate:
    @pytest.mark.parametrize("row", [[5.0] * 8, [0.0] * 8, [3.0]], ids=["equal", "zero", "one channel"])
    @pytest.mark.parametrize("upper", [0.0, 3.0])
    def test_where_all_are_equal_none_stands_out(self, row: list[float], upper: float) -> None:
        (one,) = choose(row, upper=upper, lower=-upper)
        assert (one.mean, one.std) == (row[0], 0.0)
        assert where(one.pruned | one.near) == []

    @pytest.mark.parametrize("upper", [0.0, 0.5, 3.0])
    def test_rounding_is_no_spread(self, upper: float) -> None:
        """Filters of equal length whose scores differ in the last digit of float32."""
        (one,) = choose([1.0] * 31 + [1 + 6e-8], upper=upper, lower=-upper)
        assert one.std == 0.0
        assert where(one.pruned | one.near) == []

    def test_broken_scores_are_pruned_and_leave_the_others_statistics_alone(self) -> None:
        (one,) = choose([math.nan, *TEN, math.inf, -math.inf], upper=2.9)
        assert where(one.broken) == [0, 11, 12]
        assert (one.mean, one.std) == (2.0, 3.0)
        assert where(one.high) == [10]
        assert where(one.pruned) == [0, 10, 11, 12]
        assert where(one.low) == where(one.near) == []
        (sample,) = choose([math.nan, *TEN], correction=1)
        assert sample.std == pytest.approx(math.sqrt(90 / 9))

    def test_a_layer_without_one_finite_score(self) -> None:
        broken, healthy = choose([math.nan, math.inf], TEN, upper=2.9)
        assert where(broken.pruned) == [0, 1]
        assert math.isnan(broken.mean)
        assert where(broken.high | broken.low | broken.near) == []
        assert where(healthy.high) == [9]

    @pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e200, 1e300])
    def test_squares_stay_in_range(self, scale: float) -> None:
        (one,) = choose([x * scale for x in TEN], upper=2.9)
        assert (one.mean, one.std) == pytest.approx((2 * scale, 3 * scale))
        assert where(one.high) == [9]

    def test_the_smallest_number_there_is_cannot_be_enlarged_to_infinity(self) -> None:
        (one,) = choose([1.0, 5e-324], lower=-1.0, upper=0.0, band=1.0, shrink_to="mean", upscale=True)
        assert where(one.near) == [1]
        assert math.isfinite(one.factors[1])

    def test_infinite_limits_choose_nothing(self) -> None:
        (one,) = choose(TEN, lower=-math.inf, upper=math.inf)
        assert where(one.pruned | one.near) == []
        assert (one.lower, one.band, one.upper) == (-math.inf, math.inf, math.inf)
        (one,) = choose([5.0] * 3, lower=-math.inf, upper=math.inf)  # no 0 * inf
        assert (one.lower, one.upper) == (-math.inf, math.inf)


LAYERS = st.lists(st.lists(st.just(0.0) | st.floats(1e-100, 1e6), min_size=1, max_size=40), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(
    rows=LAYERS,
    lower=st.floats(-4, 0),
    upper=st.floats(0, 4),
    band=st.floats(0, 3),
    shrink_to=st.sampled_from(["edge", "mean"]),
    upscale=st.booleans(),
)
def test_whatever_the_scores(
    rows: list[list[float]], lower: float, upper: float, band: float, shrink_to: str, upscale: bool
) -> None:
    found = choose(*rows, lower=lower, upper=upper, band=band, shrink_to=shrink_to, upscale=upscale)
    for one, row in zip(found, rows, strict=True):
        assert one.scores.tolist() == row
        assert not (one.near & one.pruned).any()
        assert not (one.high & one.low).any()
        assert np.isfinite(one.factors).all()
        assert (one.factors >= 0).all()
        assert (one.factors[~one.near] == 1).all()
        assert upscale or (one.factors <= 1).all()
        after = one.scores * one.factors
        target = max(one.band, 0.0) if shrink_to == "edge" else one.mean
        assert after[one.near] == pytest.approx(target, rel=1e-9, abs=1e-300)
        assert (one.scores[one.high] > one.mean).all()
        assert (one.scores[one.low] < one.mean).all()
        if shrink_to == "edge":  # the order of the channels is kept
            kept = ~one.pruned
            order = np.argsort(one.scores[kept], kind="stable")
            assert (np.diff(after[kept][order]) >= -1e-9 * max(one.mean, 1e-300)).all()


@settings(max_examples=50, deadline=None)
@given(rows=LAYERS, seed=st.integers(0, 999))
def test_the_order_of_channels_and_layers_does_not_matter(rows: list[list[float]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(row)) for row in rows]
    before = choose(*rows, upper=1.5, lower=-1.0)
    after = choose(
        *[[row[i] for i in order] for row, order in zip(rows, orders, strict=True)][::-1], upper=1.5, lower=-1.0
    )
    for one, other, order in zip(before, after[::-1], orders, strict=True):
        cuts = [one.lower, one.band, one.upper]
        clear = [min(abs(x - cut) for cut in cuts) > 1e-9 * (1 + one.mean) for x in one.scores]
        if all(clear):  # the mean of another order may differ in its last digit
            assert (one.pruned[order] == other.pruned).all()
            assert (one.near[order] == other.near).all()


class TestEitherOfTwoScores:
    """TEN's eleven lies at 3 deviations, its ones at -1/3."""

    def both(self, first: list[float], second: list[float], **changed: float) -> Selection:
        limits = {"lower": -3.0, "upper": 3.0, "band": 0.0, **changed}
        (one,), (other,) = choose(first, **limits), choose(second, **limits)
        return either(one, other, ("length", "width"), **limits)

    def test_an_outlier_of_one_is_an_outlier(self) -> None:
        found = self.both(TEN, [50.0, 10.0] + [10.0] * 8, upper=2.9)
        assert where(found.high) == [0, 9]
        assert found.note == "outliers by length alone: 9; outliers by width alone: 0"
        assert found.scores.tolist() == pytest.approx([3.0] + [-1 / 3] * 8 + [3.0])
        assert (found.mean, found.std, found.lower, found.upper, found.band) == (0.0, 1.0, -3.0, 2.9, math.inf)

    def test_of_both_nothing_is_said(self) -> None:
        found = self.both(TEN, TEN, upper=2.9)
        assert where(found.high) == [9]
        assert found.note == ""

    def test_where_one_score_is_equal_everywhere_the_other_decides(self) -> None:
        found = self.both([5.0] * 10, TEN, upper=2.9)
        assert where(found.high) == [9]
        assert found.note == "outliers by width alone: 9"
        assert self.both([5.0] * 10, [7.0] * 10, upper=2.9).std == 0.0

    def test_above_by_one_and_below_by_the_other_is_above(self) -> None:
        found = self.both(TEN, [10.0] * 9 + [1.0], upper=2.9, lower=-2.9)
        assert (where(found.high), where(found.low)) == ([9], [])
        assert found.scores[9] == pytest.approx(3.0)

    def test_what_is_broken_in_one_is_broken(self) -> None:
        found = self.both([math.nan, *TEN], [math.inf, *TEN])
        assert where(found.pruned) == [0]
        assert math.isnan(found.scores[0])
        nothing = self.both([math.nan] * 3, [math.nan] * 3)
        assert where(nothing.pruned) == [0, 1, 2]
        assert math.isnan(nothing.mean)

    def test_in_the_band_the_smaller_factor_serves_both(self) -> None:
        """The band of TEN at u = 4 begins at 9.5; of its double, plus one, at 2 * 9.5 + 1."""
        found = self.both(TEN, [2 * x + 1 for x in TEN], upper=4.0, band=1.5)
        assert where(found.near) == [9]
        assert found.factors.tolist() == [1.0] * 9 + [9.5 / 11]  # 20 / 23 is more
        assert (found.band, found.upper) == (2.5, 4.0)
        alone = self.both(TEN, [5.0] * 10, upper=4.0, band=1.5)
        assert alone.factors.tolist() == [1.0] * 9 + [9.5 / 11]

    def test_an_outlier_of_one_is_not_only_shrunk_for_the_other(self) -> None:
        near = [1.0] * 8 + [11.0, 9.0]  # the last two at 2.16 and 1.64
        found = self.both(near, [1.0] * 8 + [1.0, 11.0], upper=2.5, band=1.5)
        assert where(found.high) == [9]
        assert where(found.near) == [8]
        assert found.factors[9] == 1.0

    def test_a_lower_cut_fires_where_one_of_the_scores_lets_it(self) -> None:
        """A zero lies at -1/3 - 1/3 of TEN, mean 2 and std 3, and at -3 of nine ones and a zero."""
        assert self.both(TEN, TEN).least == pytest.approx(-2 / 3)
        assert self.both(TEN, LOW).least == pytest.approx(-3.0)
