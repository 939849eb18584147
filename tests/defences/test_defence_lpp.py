"""LPP against its paper: every equation by hand, every departure, the classifier step, and settings."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from layer_zoo import KINDS, Net, inputs, network, same_state
from unbackdoor.channel_scores import channel_lipschitz
from unbackdoor.defences.data_free import LPP
from unbackdoor.defences.data_free.lpp import suspicion
from unbackdoor.defences.table import parse_method
from unbackdoor.errors import SettingError
from unbackdoor.findings import Report
from unbackdoor.graph import layer_graph

#: Nine ones and an eleven: mean 2, population std sqrt((9 * 1 + 81) / 10) = 3; the eleven lies at 3.
TEN = (1.0,) * 9 + (11.0,)


def pointwise(weights: Sequence[float], *, gamma: float = 1.0, var: float = 1.0, norm: bool = True) -> Net:
    """A 1x1 convolution of one input channel: |w_j| is the number itself. eps is 0, beta 0.5, running mean 3."""
    n = len(weights)
    model = Net(nn.Conv2d(1, n, 1, bias=not norm), nn.BatchNorm2d(n, eps=0.0) if norm else None, n).eval()
    with torch.no_grad():
        model.layer.weight.copy_(torch.tensor(weights).view(n, 1, 1, 1))
        if norm:
            model.norm.weight.fill_(gamma)
            model.norm.bias.fill_(0.5)
            model.norm.running_mean.fill_(3.0)
            model.norm.running_var.fill_(var)
    return model


def only(report: Report) -> object:
    (layer,) = report.layers
    return layer


class TestAlgorithm1:
    """Lines 3 to 13."""

    def test_lines_5_to_8(self) -> None:
        """LC_j = |w_j| gamma / sqrt(var) with gamma = 2, sqrt(var) = 4: half of 1, ..., 1, 11."""
        layer = only(LPP().plan(pointwise(TEN, gamma=2.0, var=16.0)).report())
        assert layer.scores == tuple(x / 2 for x in TEN)
        assert (layer.mean, layer.std) == (1.0, 1.5)
        assert (layer.lower, layer.band, layer.upper) == (1 - 4.5, 1 + 1.5 * 1.5, 1 + 4.5)

    def test_eq_7_prunes_above(self) -> None:
        """Cut at 2 + 2.9 * 3 = 10.7 < 11: gamma and beta become 0, and with them the channel."""
        outcome = LPP(upper=2.9, fc_weights=0)(pointwise(TEN))
        assert only(outcome.report).pruned_high == (9,)
        assert outcome.model.norm.weight.tolist() == [1.0] * 9 + [0.0]
        assert outcome.model.norm.bias.tolist() == [0.5] * 9 + [0.0]
        assert outcome.model.layer.weight.flatten().tolist() == list(TEN)

    def test_eq_7_prunes_below(self) -> None:
        """Nine fives and a two: mean 4.7, std 0.9, the two at -3; cut at 4.7 - 2.9 * 0.9 = 2.09."""
        outcome = LPP(lower=-2.9, fc_weights=0)(pointwise([5.0] * 9 + [2.0]))
        assert only(outcome.report).pruned_low == (9,)
        assert outcome.model.norm.weight.tolist() == [1.0] * 9 + [0.0]

    def test_without_a_norm_the_filter_and_its_bias_go(self) -> None:
        model = pointwise(TEN, norm=False)
        outcome = LPP(upper=2.9, fc_weights=0)(model)
        assert outcome.model.layer.weight.flatten().tolist() == [1.0] * 9 + [0.0]
        assert outcome.model.layer.bias.tolist() == [*model.layer.bias.tolist()[:9], 0.0]

    def test_eqs_8_and_9_as_printed(self) -> None:
        """u = 4: the band is 2 + 2.5 * 3 = 9.5 to 14, so w = 11 becomes 11 * 2 / 11 = 2; the norm stays.

        As printed the factor is sqrt(var) / gamma, here 1.
        """
        model = pointwise(TEN)
        outcome = LPP(**{**LPP.as_printed().settings(), "upper": 4.0, "fc_weights": 0})(model)
        layer = only(outcome.report)
        assert layer.scaled == (9,)
        assert layer.factors == (2 / 11,)
        assert outcome.model.layer.weight.flatten().tolist() == [1.0] * 9 + [2.0]
        assert torch.equal(outcome.model.norm.weight, model.norm.weight)
        # The shift that comes with it, at an input of 0.3: 11 * 0.3 - 3 + 0.5 = 0.8 becomes 2 * 0.3 - 3 + 0.5 = -1.9,
        # although 0.8 - 0.5, what the norm makes of it without beta, should shrink to 0.3 * 2 / 11.
        out = outcome.model.features(torch.full((1, 1, 1, 1), 0.3))
        assert out[0, 9].item() == pytest.approx(-1.9)

    def test_eqs_8_and_9_by_default(self) -> None:
        """Only to the band's edge, 9.5, and through gamma: 9.5 / 11; at the running mean the output stays beta."""
        outcome = LPP(upper=4.0, fc_weights=0)(pointwise(TEN))
        assert only(outcome.report).factors == (9.5 / 11,)
        assert outcome.model.layer.weight.flatten().tolist() == list(TEN)
        assert outcome.model.norm.weight.tolist() == pytest.approx([1.0] * 9 + [9.5 / 11])
        assert channel_lipschitz(outcome.model)["layer"][9].item() == pytest.approx(9.5)
        at_mean = torch.full((1, 1, 1, 1), 3.0 / 11)
        assert outcome.model.features(at_mean)[0, 9].item() == pytest.approx(0.5)

    def test_the_printed_factor_is_the_reciprocal(self) -> None:
        """gamma = 2, sqrt(var) = 4: times 4 / 2 where the network multiplies with 2 / 4."""
        layer = only(LPP(norm_factor="printed").plan(pointwise(TEN, gamma=2.0, var=16.0)).report())
        assert layer.scores == tuple(2 * x for x in TEN)

    def test_the_printed_factor_has_the_sign_of_gamma(self) -> None:
        """gamma = -2: by the letter every score is below zero; their order turns, and the 11 is the smallest."""
        model = pointwise(TEN, gamma=-2.0, var=16.0)
        layer = only(LPP(norm_factor="printed_signed").plan(model).report())
        assert layer.scores == tuple(-2 * x for x in TEN)
        outcome = LPP(**{**LPP.as_printed().settings(), "lower": -2.9, "upper": 2.9, "fc_weights": 0})(model)
        assert only(outcome.report).pruned_low == (9,)
        assert only(outcome.report).pruned_high == ()
        assert only(outcome.report).scaled == ()
        assert "layer" in outcome.report.to_html()
        assert "NaN" not in outcome.report.to_json()
        assert only(LPP(norm_factor="printed", upper=2.9).plan(model).report()).pruned_high == (9,)

    def test_equal_scores_below_zero_are_no_outliers(self) -> None:
        model = pointwise([0.1] * 9 + [0.1 + 1e-9], gamma=-1.0)
        assert only(LPP(norm_factor="printed_signed", upper=1.0, lower=-1.0).plan(model).report()).pruned == ()

    def test_the_squared_norm(self) -> None:
        layer = only(LPP(norm="l2sq").plan(pointwise(TEN)).report())
        assert layer.scores == tuple(x**2 for x in TEN)

    def test_mean_and_std_are_not_taken_again_after_pruning(self) -> None:
        """The 11 goes, the 3 stays; a second repair, of the repaired network, would find it far out."""
        model = pointwise([1.0] * 20 + [3.0, 11.0])
        once = LPP(band=0.0, lower=-math.inf, fc_weights=0)(model)
        assert only(once.report).pruned == (21,)
        without = pointwise([1.0] * 20 + [3.0])
        assert only(LPP(band=0.0, lower=-math.inf, fc_weights=0).plan(without).report()).pruned == (20,)


def test_as_printed_is_the_paper_to_the_letter() -> None:
    assert LPP.as_printed() == LPP(norm_factor="printed_signed", scale="weight", shrink_to="mean", upscale=True)
    assert (LPP().lower, LPP().upper, LPP().band, LPP().correction) == (-3.0, 3.0, 1.5, 0)


def square(*filters: tuple[float, float, float, float]) -> Net:
    """Filters of two input channels and a kernel of two: 2x2 matrices, row by row."""
    model = Net(nn.Conv2d(2, len(filters), (1, 2), bias=False), nn.BatchNorm2d(len(filters), eps=0.0), len(filters))
    with torch.no_grad():
        model.layer.weight.copy_(torch.tensor(filters).view(-1, 2, 1, 2))
    return model.eval()


class TestEitherNorm:
    """A filter diag(a, a) has length sqrt(2) a and spectral norm a; one of rank one has the same of both."""

    def test_what_it_is(self) -> None:
        assert LPP.either_norm() == LPP(norm="either", band=0.0)
        assert parse_method("lpp", preset="either_norm") == LPP.either_norm()

    def test_an_outlier_that_only_clps_norm_sees(self) -> None:
        """All are 5 long, so that by length none stands out; one of twenty lies sqrt(19) deviations out."""
        a = 5 / math.sqrt(2)
        model = square(*[(a, 0.0, 0.0, a)] * 19, (3.0, 4.0, 0.0, 0.0))
        assert LPP(band=0.0).plan(model).report().pruned == 0
        report = LPP.either_norm().plan(model).report()
        layer = only(report)
        assert layer.pruned_high == (19,)
        assert layer.z(19) == pytest.approx(math.sqrt(19), rel=1e-5)
        assert layer.notes == ("outliers by its spectral norm alone: 19",)
        assert "standard deviations" in report.score

    def test_an_outlier_that_only_the_length_sees(self) -> None:
        model = square(*[(5.0, 0.0, 0.0, 0.0)] * 19, (5.0, 0.0, 0.0, 5.0))
        layer = only(LPP.either_norm().plan(model).report())
        assert layer.pruned_high == (19,)
        assert layer.notes == ("outliers by the filter's length alone: 19",)

    @pytest.mark.parametrize("name", KINDS)
    def test_it_prunes_what_either_prunes(self, name: str) -> None:
        model = network(name)
        found = []
        for norm in ("l2", "spectral", "either"):
            report = LPP(norm=norm, band=0.0, lower=-1.2, upper=1.5, layers="all").plan(model).report()
            found.append({(layer.path, channel) for layer in report.layers for channel in layer.pruned})
            for layer in report.layers:
                assert set(layer.pruned_high) == {c for c in range(len(layer.scores)) if layer.scores[c] > layer.upper}
        assert found[2] == found[0] | found[1]
        assert found[2]

    def test_what_it_shrinks_lies_inside_of_both_bands(self) -> None:
        model = network("conv2d")
        method = LPP(norm="either", upper=4.0, band=3.0, fc_weights=0)
        outcome = method(model)
        (layer,) = outcome.report.layers
        assert layer.scaled
        for norm in ("l2", "spectral"):
            (alone,) = LPP(norm=norm, upper=4.0, band=3.0).plan(model).report().layers
            after = channel_lipschitz(outcome.model, norm=norm)["layer"]
            assert all(after[channel] <= alone.band * (1 + 1e-6) for channel in layer.scaled)

    def test_a_lower_cut_at_zero_of_both_is_said_to_do_nothing(self) -> None:
        notes = [only(LPP(norm=norm).plan(pointwise(TEN)).report()).notes for norm in ("l2", "either")]
        assert notes[0] == notes[1]
        assert "no score can be below the lower threshold: the threshold is zero or negative" in notes[1]


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("name", KINDS)
def test_limits_at_infinity_change_nothing(name: str, norm: bool) -> None:
    model = network(name, norm=norm)
    method = LPP(lower=-math.inf, upper=math.inf, fc_weights=0, layers="all")
    plan = method.plan(model)
    assert plan.edits == ()
    assert plan.classifier is None
    outcome = method(model)
    assert same_state(outcome.model, model)
    layer = outcome.report.layers[0]
    assert (layer.lower, layer.band, layer.upper) == (None, None, None)
    assert outcome.report.to_dict()["settings"]["upper"] == "inf"


def test_what_is_scored() -> None:
    """Convolutions, and a Linear with a norm, which is a 1x1 convolution; other hidden Linear layers only if asked."""
    hidden = nn.Sequential(nn.Conv1d(3, 4, 1), nn.Flatten(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    report = LPP().plan(hidden).report()
    assert [layer.path for layer in report.layers] == ["0"]
    assert [(remark.path, remark.reason.split(";")[0]) for remark in report.left_alone] == [
        ("2", "LPP scores convolutions"),
        ("4", "its rows are the network's answers, not hidden channels"),
    ]
    assert [layer.path for layer in LPP(layers="all").plan(hidden).report().layers] == ["0", "2"]
    assert [layer.path for layer in LPP().plan(network("linear")).report().layers] == ["layer"]


# Lines 14 to 18. Class means 2, 1, 1: class 0 is suspected. The other rows' means are (1, 0, 2, 1), so that its
# weights lie 0, 5, -2 and 1 above them.
MATRIX = torch.tensor([[1.0, 5.0, 0.0, 2.0], [0.0, 1.0, 4.0, -1.0], [2.0, -1.0, 0.0, 3.0]])


def classifier(weight: Tensor = MATRIX) -> nn.Sequential:
    model = nn.Sequential(nn.Flatten(), nn.Linear(weight.shape[1], len(weight)))
    with torch.no_grad():
        model[1].weight.copy_(weight)
    return model.to(weight.dtype).eval()


class TestClassifier:
    def test_line_16(self) -> None:
        assert suspicion(MATRIX, 0).tolist() == [0.0, 5.0, -2.0, 1.0]

    @pytest.mark.parametrize(
        ("setting", "cut"),
        [
            (1, (1,)),
            (2, (1, 3)),
            (3, (1, 3, 0)),
            (4, (1, 3, 0, 2)),  # signed: -2 comes last, not second
            (4.0, (1, 3, 0, 2)),
            (0.5, (1, 3)),  # a share of four features
            (0.01, (1,)),  # never less than one
            (0.999, (1, 3, 0, 2)),
        ],
    )
    def test_lines_14_to_18(self, setting: float, cut: tuple[int, ...]) -> None:
        model = classifier()
        outcome = LPP(fc_weights=setting)(model)
        found = outcome.report.classifier
        assert (found.path, found.guessed_class, found.features) == ("1", 0, 4)
        assert found.cut == cut
        assert found.gaps == tuple([0.0, 5.0, -2.0, 1.0][i] for i in cut)
        assert found.class_means == (2.0, 1.0, 1.0)
        expected = MATRIX.clone()
        expected[0, list(cut)] = 0
        assert torch.equal(outcome.model[1].weight, expected)
        assert torch.equal(outcome.model[1].bias, model[1].bias)

    @pytest.mark.parametrize("count", [5, 400])
    def test_more_weights_than_there_are_features_are_refused(self, count: int) -> None:
        with pytest.raises(SettingError, match=f"fc_weights: expected at most 4, the input features of 1, got {count}"):
            LPP(fc_weights=count).plan(classifier())

    def test_a_fixed_basis_is_no_classifier(self) -> None:
        """Numbers that a network holds as a buffer were laid down, not learnt."""

        class Inverse(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body = nn.Linear(4, 4)
                self.register_buffer("basis", torch.rand(6, 4))

            def forward(self, x: Tensor) -> Tensor:
                return nn.functional.linear(torch.relu(self.body(x)), self.basis)

        assert self.said(Inverse().eval()).endswith("its weight is a buffer, not a parameter, so it was not trained")

    def test_zero_switches_it_off(self) -> None:
        plan = LPP(fc_weights=0).plan(classifier())
        assert (plan.classifier, plan.edits) == (None, ())
        assert all("classifier step" not in remark.reason for remark in plan.left_alone)

    def test_ties_go_to_the_first(self) -> None:
        found = LPP(fc_weights=50).plan(classifier(torch.ones(3, 4000))).classifier
        assert (found.guessed_class, found.cut) == (0, tuple(range(50)))

    def test_1x1_convolutions_are_classifiers_too(self) -> None:
        body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        model = nn.Sequential(*body, nn.Conv2d(4, 3, 1), nn.Flatten()).eval()
        with torch.no_grad():
            model[4].weight.copy_(MATRIX[:, :, None, None])
        outcome = LPP(fc_weights=2)(model)
        assert outcome.report.classifier.cut == (1, 3)
        assert outcome.model[4].weight[0].flatten().tolist() == [1.0, 0.0, 0.0, 0.0]
        assert torch.equal(outcome.model[4].weight[1:], model[4].weight[1:])

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_every_precision(self, dtype: torch.dtype) -> None:
        """Rows whose sum float16 cannot hold."""
        weight = torch.full((2, 4000), 60.0, dtype=dtype)
        weight[1, 7] = 64.0
        found = LPP(fc_weights=1).plan(classifier(weight)).classifier
        assert (found.guessed_class, found.cut, found.gaps) == (1, (7,), (4.0,))
        assert found.class_means == (60.0, 60.001)

    def test_rows_that_overflow_single_precision(self) -> None:
        weight = torch.full((2, 8), 3e38)
        weight[0, 3] = 1e38
        plan = LPP(fc_weights=1).plan(classifier(weight))
        assert plan.classifier.guessed_class == 1
        assert plan.classifier.cut == (3,)
        assert all(math.isfinite(x) for x in (*plan.classifier.gaps, *plan.classifier.class_means))

    def said(self, model: nn.Module) -> str:
        plan = LPP().plan(model)
        assert plan.classifier is None
        (reason,) = [r.reason for r in (*plan.left_alone, *plan.not_covered) if "classifier step" in r.reason]
        return reason

    def test_several_heads(self) -> None:
        class Heads(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body = nn.Conv2d(3, 4, 3)
                self.first = nn.Linear(4, 2)
                self.second = nn.Linear(4, 5)

            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
                x = torch.relu(self.body(x)).mean((2, 3))
                return self.first(x), self.second(x)

        assert self.said(Heads().eval()) == "the classifier step was skipped: first, second"

    def test_no_head(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
        assert self.said(model).endswith("0 makes the output through a norm")
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LSTM(6, 4)).eval()
        assert self.said(model).endswith("no single layer makes the answers")

    @pytest.mark.parametrize(
        ("model", "reason"),
        [
            (nn.Sequential(nn.Flatten(), nn.Linear(4, 1)), "it has a single row, so no class can stand out"),
            (nn.Sequential(nn.Conv2d(3, 4, 3)), "its output is a map, not one number per class"),
            (nn.Sequential(nn.ConvTranspose2d(4, 3, 1)), "its rows do not all read the same features"),
            (nn.Sequential(nn.Conv2d(4, 2, 1, groups=2)), "its rows do not all read the same features"),
            (classifier(torch.full((3, 4), math.nan)), "its weights contain NaN or infinity"),
            (classifier(MATRIX.to(torch.float8_e4m3fn)), "its weight is stored as float8_e4m3fn"),
            (classifier(MATRIX).to("meta"), "it has no weights (they are on the meta device)"),
            (
                nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))),
                "its weight is computed by a parametrization",
            ),
        ],
    )
    def test_what_is_no_classifier(self, model: nn.Module, reason: str) -> None:
        assert self.said(model.eval()) == f"the classifier step was skipped: {reason}"

    def test_a_sparse_weight(self) -> None:
        model = classifier()
        model[1].weight = nn.Parameter(MATRIX.to_sparse())
        assert "torch.sparse_coo" in self.said(model)

    def test_a_weight_shared_with_an_embedding_of_its_own_kind(self) -> None:
        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first = nn.Linear(4, 4)
                self.last = nn.Linear(4, 4)
                self.last.weight = self.first.weight

            def forward(self, x: Tensor) -> Tensor:
                return self.last(torch.relu(self.first(x)))

        assert self.said(Tied().eval()).endswith("its weight is shared with another layer")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"upper": -1}, "upper: expected a number from 0 to inf, got -1"),
        ({"upper": math.nan}, "upper: expected a number from 0 to inf, got nan"),
        ({"upper": True}, "upper: expected a number from 0 to inf, got True"),
        ({"upper": "3"}, "upper: expected a number from 0 to inf, got '3'"),
        ({"lower": 0.5}, "lower: expected a number from -inf to 0, got 0.5"),
        ({"band": -1.5}, r"band: expected a number from 0 to 1e\+06, got -1.5"),
        ({"band": math.inf}, "band: expected"),
        ({"fc_weights": -1}, r"fc_weights: expected a number from 0 to 1e\+09, got -1"),
        ({"fc_weights": math.inf}, "fc_weights: expected"),
        ({"fc_weights": 600.5}, "fc_weights: expected a share below 1 or a whole number of weights, got 600.5"),
        ({"fc_weights": 1.5}, "fc_weights: expected a share below 1 or a whole number of weights, got 1.5"),
        ({"norm": "l3"}, "norm: expected one of l2, l2sq, spectral, either, got 'l3'"),
        (
            {"norm_factor": "inverse"},
            "norm_factor: expected one of folded, no_eps, printed, printed_signed, none, got 'inverse'",
        ),
        ({"scale": "beta"}, "scale: expected one of gamma, weight, got 'beta'"),
        ({"shrink_to": "zero"}, "shrink_to: expected one of edge, mean, got 'zero'"),
        ({"upscale": "no"}, "upscale: expected one of False, True, got 'no'"),
        ({"upscale": 1}, "upscale: expected one of False, True, got 1"),
        ({"layers": "linear"}, "layers: expected one of conv, all, got 'linear'"),
        ({"correction": 2}, "correction: expected one of 0, 1, got 2"),
        ({"correction": True}, "correction: expected one of 0, 1, got True"),
        ({"correction": 1.0}, "correction: expected one of 0, 1, got 1.0"),
    ],
)
def test_invalid_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=f"^{message}"):
        LPP(**settings)


def test_the_network_goes_on_learning() -> None:
    """In train mode, with gradients: a pruned channel does not come back as NaN."""
    model = network("conv2d")
    copy = LPP(upper=2.0)(model).model.train()
    copy(inputs("conv2d")).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in copy.parameters() if p.grad is not None)


def test_upper_zero_and_lower_zero_prune_all_but_the_mean() -> None:
    report = LPP(lower=0, upper=0, fc_weights=0).plan(pointwise([1.0, 2.0, 3.0])).report()
    assert only(report).pruned == (0, 2)


def test_the_graph_may_be_given() -> None:
    model = network("conv2d")
    assert LPP().plan(model, graph=layer_graph(model)).edits[0].name == LPP().plan(model).edits[0].name
