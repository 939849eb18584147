"""What every attack in the registry must do: a new one is tested by its name alone."""

import json
from dataclasses import replace

import pytest
import torch
from prepared_attacks import NAMES, QUICK, Brightness, arm, assert_same_stamp, data_of

from unbackdoor.attacks import (
    ATTACKS,
    DataPoisoning,
    TrainingControl,
    describe_attack,
    parse_attack,
    read_attack,
)
from unbackdoor.errors import SettingError

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
each = pytest.mark.parametrize("name", NAMES)
each_size = pytest.mark.parametrize("size", [32, 64])


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@each
def test_it_is_one_of_the_two_kinds_and_says_where_it_comes_from(name: str) -> None:
    kind = ATTACKS[name]
    assert issubclass(kind, DataPoisoning) != issubclass(kind, TrainingControl)
    assert (kind.name, bool(kind.title), bool(kind.source())) == (name, True, True)


@each
@each_size
@pytest.mark.parametrize("device", DEVICES)
def test_stamped_images_are_like_images(name: str, size: int, device: str) -> None:
    attack = arm(name, size)
    images = data_of(size).images.to(device)
    before = images.clone()
    stamped = attack.stamp(images)
    assert (stamped.shape, stamped.dtype, stamped.device) == (images.shape, torch.uint8, images.device)
    assert torch.equal(images, before)
    if name != "ssba":  # two steps of training say nothing yet
        assert all(not torch.equal(one, other) for one, other in zip(stamped, images, strict=True))


@each
@each_size
def test_the_same_image_gets_the_same_trigger(name: str, size: int) -> None:
    attack = arm(name, size)
    images = data_of(size, 6).images
    stamped = attack.stamp(images)
    assert torch.equal(stamped, attack.stamp(images))
    assert_same_stamp(name, stamped, torch.cat([attack.stamp(image[None]) for image in images]))
    assert_same_stamp(name, stamped.flip(0), attack.stamp(images.flip(0)))


@each
def test_no_images_are_stamped_without_complaint(name: str) -> None:
    images = torch.zeros(0, 3, 32, 32, dtype=torch.uint8)
    stamped = arm(name).stamp(images)
    assert (stamped.shape, stamped.dtype) == (images.shape, torch.uint8)


@each
def test_arming_is_drawn_from_the_seed_alone(name: str) -> None:
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first, again, other = arm(name), arm(name), arm(name, seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    assert first == again == other  # as settings they are equal
    assert sorted(first.tensors) == sorted(again.tensors) == sorted(other.tensors)
    assert all(torch.equal(tensor, again.tensors[key]) for key, tensor in first.tensors.items())
    if first.tensors:
        assert any(not torch.equal(tensor, other.tensors[key]) for key, tensor in first.tensors.items())


@each
def test_an_attack_that_was_never_prepared(name: str) -> None:
    """It needs no arming, or says that it does."""
    attack, images = parse_attack(QUICK.get(name, name)), data_of().images
    prepared = arm(name)
    if prepared.tensors:
        with pytest.raises(SettingError, match=rf"{name}: its trigger is not in its settings; load the attack\.json"):
            attack.stamp(images)
    else:
        assert torch.equal(attack.stamp(images), prepared.stamp(images))


@each
def test_its_settings_survive_text_and_json(name: str) -> None:
    attack = arm(name, target=2)
    record = json.loads(json.dumps(describe_attack(attack), allow_nan=False))
    assert (record["name"], record["target"]) == (name, 2)
    assert not {"tensors", "surrogate"} & set(record)
    assert read_attack(record) == attack


@each
@pytest.mark.parametrize(("target", "fits"), [(-1, False), (0, True), (9, True), (10, False)])
def test_the_target_is_one_of_the_classes(name: str, target: int, fits: bool) -> None:
    attack = parse_attack(name, target=target)
    if fits:
        attack.check(num_classes=10, size=32)
    else:
        with pytest.raises(SettingError, match=f"target: expected one of the classes 0 to 9, got {target}"):
            attack.check(num_classes=10, size=32)


@each
def test_what_is_asked_for(name: str) -> None:
    labels = torch.tensor([0, 3, 9])
    assert arm(name, target=3).target_labels(labels, 10).tolist() == [3, 3, 3]
    if ATTACKS[name].clean_label:
        with pytest.raises(SettingError, match=f"{name} does not change labels"):
            parse_attack(f"{name}:mapping=all-to-all")
    else:
        assert parse_attack(f"{name}:mapping=all-to-all").target_labels(labels, 10).tolist() == [1, 4, 0]


@each
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("mapping=some", "expected one of all-to-one, all-to-all"),
        ("flat_norms=-1.0", "flat_norms: expected a finite number of at least 0"),
    ],
)
def test_common_settings_out_of_range(name: str, setting: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        parse_attack(f"{name}:{setting}")


@each
def test_a_number_setting_that_is_no_number(name: str) -> None:
    for key, value in describe_attack(parse_attack(name)).items():
        if isinstance(value, float):
            for bad in ("nan", "inf", "-1.0"):
                with pytest.raises(SettingError, match=key.replace("_", ".")):
                    parse_attack(f"{name}:{key}={bad}")


@each
def test_how_far_arming_is_runs_to_the_end(name: str) -> None:
    told: list[tuple[int, int]] = []
    attack = parse_attack(QUICK.get(name, name))
    classifier = Brightness() if attack.needs_classifier else None
    prepared = attack.prepare(data_of(), seed=0, classifier=classifier, progress=lambda *steps: told.append(steps))
    if isinstance(prepared, DataPoisoning):
        prepared.poison(data_of().images, data_of().labels, rate=0.1, num_classes=10, generator=_generator())
    assert told == [(k + 1, len(told)) for k in range(len(told))]


@pytest.mark.parametrize("name", [name for name in NAMES if issubclass(ATTACKS[name], DataPoisoning)])
def test_poisoned_sets(name: str) -> None:
    """Two of twenty images; the rest is as it was."""
    attack, data = arm(name, target=4), data_of()
    assert isinstance(attack, DataPoisoning)
    poisoned = attack.poison(data.images, data.labels, rate=0.1, num_classes=10, generator=_generator())
    assert torch.equal(data.images, data_of().images)
    assert int(poisoned.mask.sum()) == 2
    assert torch.equal(poisoned.images[~poisoned.mask], data.images[~poisoned.mask])
    assert torch.equal(poisoned.labels[~poisoned.mask], data.labels[~poisoned.mask])
    assert (poisoned.labels[poisoned.mask] == 4).all()
    if attack.clean_label:
        assert torch.equal(poisoned.labels, data.labels)
    if name != "lc":  # whose training images are perturbed as well
        assert_same_stamp(name, poisoned.images[poisoned.mask], attack.stamp(data.images[poisoned.mask]))
    again = attack.poison(data.images, data.labels, rate=0.1, num_classes=10, generator=_generator())
    assert torch.equal(again.images, poisoned.images)
    none = attack.poison(data.images, data.labels, rate=0.0, num_classes=10, generator=_generator())
    assert torch.equal(none.images, data.images)


@pytest.mark.parametrize("name", [name for name in NAMES if issubclass(ATTACKS[name], TrainingControl)])
def test_edited_batches(name: str) -> None:
    """A session leaves its inputs alone, changes no shapes, and draws from the generator that it is given."""
    attack, data = arm(name, target=4), data_of()
    assert isinstance(attack, TrainingControl)
    session = attack.session(rate=0.25, spec=data.spec, seed=0, epochs=1, device=torch.device("cpu"))
    results = []
    for _ in range(2):
        generator = _generator(3)
        images, labels = session.before(data.images, data.labels, generator)
        x, y, _ = session.after(images.float() / 255, labels, generator)
        results.append((x, y))
    assert torch.equal(data.images, data_of().images)
    assert torch.equal(data.labels, data_of().labels)
    assert results[0][0].shape == data.images.shape
    assert torch.equal(results[0][1], results[1][1])
    assert torch.allclose(results[0][0], results[1][0])
    assert results[0][1].tolist() == [4] * 5 + data.labels[5:].tolist()  # int(0.25 * 20) attacked images, in front


@each
def test_images_of_64_pixels_are_attacked_at_their_own_resolution(name: str) -> None:
    attack = arm(name, 64)
    assert attack.stamp(data_of(64, 2).images).shape == (2, 3, 64, 64)
    attack.check(num_classes=10, size=64)


@each
def test_a_rate_that_reaches_no_image(name: str) -> None:
    """Of 20 images in 2 epochs."""
    attack, labels = parse_attack(name), data_of().labels
    for rate, reaches in ((0.0, True), (0.05, True), (0.01, False)):
        if reaches:
            attack.check_rate(rate, labels, batches=[16, 4], epochs=2)
        else:
            with pytest.raises(SettingError, match="poison rate 0.01.*; use a larger rate"):
                attack.check_rate(rate, labels, batches=[16, 4], epochs=2)


@pytest.mark.parametrize(("name", "half"), [("wanet", 16), ("bpp", 16), ("inputaware", 8)])
def test_how_many_of_a_batch_are_attacked(name: str, half: int) -> None:
    attack = parse_attack(name)
    assert isinstance(attack, TrainingControl)
    assert [attack.attacked(rate, 16) for rate in (0.0, 0.01, 0.1, 0.29, 1.0)] == [0, 0.16, 1, 4, half]


@pytest.mark.parametrize("name", ["blended", "lf", "wanet", "ssba"])
def test_a_trigger_for_images_of_another_size(name: str) -> None:
    """A field or a pattern is refused in one line; a network that takes any size stamps."""
    attack = arm(name, 32)
    if name == "ssba":
        assert attack.stamp(data_of(64, 2).images).shape == (2, 3, 64, 64)
        return
    with pytest.raises(SettingError, match=rf"{name}: its (trigger|field) was made for .*32.*got .*64"):
        attack.stamp(data_of(64, 2).images)


@pytest.mark.parametrize(("name", "setting"), [("ssba", "bits"), ("ssba", "width")])
@pytest.mark.parametrize("value", [3, 1_000_000])
def test_settings_that_are_not_the_triggers(name: str, setting: str, value: int) -> None:
    attack = replace(arm(name), **{setting: value})
    with pytest.raises(SettingError, match=f"{name}: its trigger does not fit its settings"):
        attack.stamp(data_of().images)


def test_a_trigger_of_another_network() -> None:
    attack = arm("inputaware")
    tensors = {key: tensor[:1] if key == "mask.0.weight" else tensor for key, tensor in attack.tensors.items()}
    with pytest.raises(SettingError, match="inputaware: its trigger does not fit its settings"):
        replace(attack, tensors=tensors).stamp(data_of().images)
