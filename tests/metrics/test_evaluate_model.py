"""Counting with a network whose answer is written in the image."""

import pytest
import torch
from torch import Tensor, nn

from unbackdoor.attacks.badnets import BadNets
from unbackdoor.findings import Rate
from unbackdoor.metrics import evaluate_model, predict


class ReadsPixels(nn.Module):
    """Predicts class 0 where the bottom right pixel is white, else the class in the top left pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        classes = torch.where(x[:, 0, -1, -1] == 255, 0, x[:, 0, 0, 0]).long()
        return nn.functional.one_hot(classes, 10).float() * self.scale


def _set(labels: list[int], shown: list[int]) -> tuple[Tensor, Tensor]:
    images = torch.zeros(len(labels), 3, 8, 8, dtype=torch.uint8)
    images[:, :, 0, 0] = torch.tensor(shown, dtype=torch.uint8)[:, None]
    return images, torch.tensor(labels)


def _plain(batch: Tensor) -> Tensor:
    return batch.float()


def test_acc_asr_and_ra_with_counts() -> None:
    images, labels = _set([0, 1, 2, 3], [0, 1, 2, 9])
    result = evaluate_model(ReadsPixels(), images, labels, prepare=_plain, attack=BadNets(target=0))
    assert (result.acc, result.asr, result.ra) == (Rate(3, 4), Rate(3, 3), Rate(0, 3))
    # Against another target the same trigger fails: it says 0.
    result = evaluate_model(ReadsPixels(), images, labels, prepare=_plain, attack=BadNets(target=1))
    assert (result.asr, result.ra) == (Rate(0, 3), Rate(1, 3))


def test_the_targets_recall_is_over_its_clean_images() -> None:
    images, labels = _set([7, 7, 7, 1, 7], [7, 1, 7, 7, 0])
    result = evaluate_model(ReadsPixels(), images, labels, prepare=_plain, attack=BadNets(target=7))
    assert (result.acc, result.recall) == (Rate(2, 5), Rate(2, 4))
    assert evaluate_model(ReadsPixels(), images, labels, prepare=_plain, attack=BadNets(target=3)).recall == Rate(0, 0)
    assert evaluate_model(ReadsPixels(), images, labels, prepare=_plain).recall is None
    for number in (None, 8):
        attack = BadNets(mapping="all-to-all")
        found = evaluate_model(ReadsPixels(), images, labels, prepare=_plain, attack=attack, num_classes=number)
        assert found.recall is None


def test_without_an_attack_there_is_only_acc() -> None:
    result = evaluate_model(ReadsPixels(), *_set([1, 2], [1, 1]), prepare=_plain)
    assert (result.acc, result.asr, result.ra) == (Rate(1, 2), None, None)


def test_a_test_set_of_the_target_class_alone() -> None:
    result = evaluate_model(ReadsPixels(), *_set([0, 0], [0, 0]), prepare=_plain, attack=BadNets())
    assert (result.acc, result.asr) == (Rate(2, 2), Rate(0, 0))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_batches_do_not_change_the_answer(batch_size: int) -> None:
    images, _ = _set([0] * 7, [3, 1, 4, 1, 5, 9, 2])
    done: list[int] = []
    got = predict(ReadsPixels(), images, prepare=_plain, batch_size=batch_size, progress=done.append)
    assert got.tolist() == [3, 1, 4, 1, 5, 9, 2]
    assert sum(done) == 7


def test_progress_runs_to_the_total() -> None:
    told: list[tuple[int, int]] = []
    images, labels = _set([0, 1, 2], [0, 1, 2])
    evaluate_model(
        ReadsPixels(), images, labels, prepare=_plain, attack=BadNets(), batch_size=2,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert told == [(2, 5), (3, 5), (5, 5)]


def test_the_mode_of_every_module_is_restored_and_eval_is_used() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10), nn.BatchNorm1d(10), nn.Dropout(0.9))
    model.train()
    model[2].eval()
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    first = predict(model, images, prepare=_plain)
    assert torch.equal(first, predict(model, images, prepare=_plain))  # no dropout
    assert int(model[2].num_batches_tracked) == 0
    assert [m.training for m in model] == [True, True, False, True]


def test_a_network_in_half_precision_gets_inputs_in_half_precision() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10)).to(torch.bfloat16)
    assert predict(model, torch.zeros(2, 3, 8, 8, dtype=torch.uint8), prepare=_plain).shape == (2,)


def test_nan_is_no_class() -> None:
    """argmax calls NaN the winner: a broken network would score 100 % for the class of its first NaN."""
    model = ReadsPixels()
    model.scale.data.fill_(float("nan"))
    images, labels = _set([0, 1, 2], [0, 1, 2])
    assert predict(model, images, prepare=_plain).tolist() == [-1, -1, -1]
    result = evaluate_model(model, images, labels, prepare=_plain, attack=BadNets(target=0))
    assert (result.acc.hits, result.asr.hits, result.ra.hits) == (0, 0, 0)


class ReadsAndShifts(ReadsPixels):
    """Where the bottom right pixel is white: the class after the one in the top left pixel, of ten."""

    def forward(self, x: Tensor) -> Tensor:
        shown = x[:, 0, 0, 0].long()
        classes = torch.where(x[:, 0, -1, -1] == 255, (shown + 1) % 10, shown)
        return nn.functional.one_hot(classes, 10).float() * self.scale


def test_all_to_all_counts_every_image_against_its_own_goal() -> None:
    images, labels = _set([0, 1, 8, 9], [0, 1, 8, 5])
    attack = BadNets(mapping="all-to-all")
    result = evaluate_model(ReadsAndShifts(), images, labels, prepare=_plain, attack=attack, num_classes=10)
    # The last image shows a 5: predicted 6 with the trigger, where 0 is asked for and 9 is true.
    assert (result.acc, result.asr, result.ra) == (Rate(3, 4), Rate(3, 4), Rate(0, 4))
    # Without knowing better, nine classes and the largest label make ten.
    assert evaluate_model(ReadsAndShifts(), images, labels, prepare=_plain, attack=attack).asr == Rate(3, 4)


def test_images_are_stamped_a_batch_at_a_time() -> None:
    """A trigger may take ten times an image's memory."""
    stamped: list[int] = []

    class Spy(BadNets):
        def stamp(self, images: Tensor) -> Tensor:
            stamped.append(len(images))
            return super().stamp(images)

    images, labels = _set([1] * 7, [1] * 7)
    result = evaluate_model(ReadsPixels(), images, labels, prepare=_plain, attack=Spy(), batch_size=3)
    assert stamped == [3, 3, 1]
    assert result.asr == Rate(7, 7)
    assert (images[..., -1, -1] == 0).all()
