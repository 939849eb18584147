"""ACC, ASR, RA and DER against tables counted by hand."""

import json

import pytest
import torch

from unbackdoor.findings import Evaluation, Rate, defence_effectiveness, read_evaluation
from unbackdoor.metrics import accuracy, attack_success, recall

# Triggered images; the target is class 0.
#   true       0  0  1  1  1  2  2  2
#   predicted  0  1  0  1  2  0  2  0
# Of the six whose class is not 0: predicted as 0: three; as their own: two.
TRUE = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2])
PREDICTED = torch.tensor([0, 1, 0, 1, 2, 0, 2, 0])


def test_asr_and_ra_leave_the_target_class_out() -> None:
    assert attack_success(PREDICTED, TRUE, 0) == (Rate(3, 6), Rate(2, 6))


def test_another_target_leaves_other_rows_out() -> None:
    # Rows whose class is not 1: true 0 0 2 2 2, predicted 0 1 0 2 0.
    assert attack_success(PREDICTED, TRUE, 1) == (Rate(1, 5), Rate(2, 5))


def test_accuracy_counts_every_class() -> None:
    assert accuracy(PREDICTED, TRUE) == Rate(3, 8)
    assert accuracy(PREDICTED, TRUE).value == 0.375


def test_nothing_to_count_is_none_and_not_zero() -> None:
    assert Rate(0, 0).value is None
    asr, ra = attack_success(torch.tensor([0]), torch.tensor([0]), 0)
    assert (asr, ra) == (Rate(0, 0), Rate(0, 0))


def test_to_dict_is_json_with_counts() -> None:
    record = Evaluation(Rate(1, 2), Rate(0, 0)).to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == {
        "acc": {"hits": 1, "total": 2, "value": 0.5},
        "asr": {"hits": 0, "total": 0, "value": None},
        "ra": None,
        "recall": None,
    }


@pytest.mark.parametrize(
    ("acc", "asr", "der"),
    [
        ((0.9, 0.9), (1.0, 1.0), 0.5),  # nothing happened
        ((0.9, 0.9), (1.0, 0.0), 1.0),  # a full repair for free
        ((0.9, 0.8), (1.0, 0.2), 0.85),  # (0.8 - 0.1 + 1) / 2: the loss is subtracted
        ((0.9, 0.0), (1.0, 1.0), 0.05),  # (0 - 0.9 + 1) / 2
        ((0.9, 0.95), (0.5, 0.6), 0.5),  # no bonus for accuracy, no malus for a rising ASR
        ((1.0, 0.0), (0.0, 0.0), 0.0),
    ],
)
def test_der_by_hand(acc: tuple[float, float], asr: tuple[float, float], der: float) -> None:
    value = defence_effectiveness(acc_before=acc[0], acc_after=acc[1], asr_before=asr[0], asr_after=asr[1])
    assert value == pytest.approx(der)


def test_goals_of_their_own_for_all_to_all() -> None:
    # Each image's goal is the class after its own, of three: 1 1 2 2 2 0 0 0. Predicted 0 1 0 1 2 0 2 0: the second,
    # the fifth, the sixth and the eighth do as asked; the first, the fourth and the seventh show their own class.
    goals = (TRUE + 1) % 3
    assert attack_success(PREDICTED, TRUE, goals) == (Rate(4, 8), Rate(3, 8))


def test_images_whose_goal_is_their_own_class_are_left_out() -> None:
    goals = torch.tensor([0, 0, 0, 0, 0, 2, 2, 2])
    # Rows 2 to 4: true 1 1 1, predicted 0 1 2.
    assert attack_success(PREDICTED, TRUE, goals) == (Rate(1, 3), Rate(1, 3))


def test_rates_are_read_back() -> None:
    for found in (Evaluation(Rate(3, 4)), Evaluation(Rate(3, 4), Rate(0, 0), Rate(1, 2))):
        assert read_evaluation(found.to_dict()) == found


def test_recall_is_of_the_target_class_alone() -> None:
    # Rows of class 2: predicted 0 2 0; of class 0: 0 1.
    assert [recall(PREDICTED, TRUE, target) for target in (2, 0)] == [Rate(1, 3), Rate(1, 2)]
    assert recall(PREDICTED, TRUE, 7) == Rate(0, 0)


def test_an_older_record_has_no_recall() -> None:
    found = Evaluation(Rate(3, 4), Rate(1, 3), Rate(1, 3), Rate(1, 1))
    assert read_evaluation(found.to_dict()) == found
    older = {name: rate for name, rate in found.to_dict().items() if name != "recall"}
    assert read_evaluation(older) == Evaluation(found.acc, found.asr, found.ra)
