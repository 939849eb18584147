"""The training loop: reproducible, and resumed as if it had never stopped."""

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from unbackdoor.attacks import Session, TrainingControl, parse_attack
from unbackdoor.attacks.bpp import BPP
from unbackdoor.data import DATASETS, DatasetSpec, LabelledImages, normalise
from unbackdoor.data.augment import Augmentation
from unbackdoor.errors import CheckpointError, SettingError
from unbackdoor.train import Epoch, Recipe, Step, fit
from unbackdoor.train.fit import batch_sizes, vary

RECIPE = Recipe(name="tiny", epochs=3, lr=0.05, schedule="onecycle", batch_size=16, crop_padding=2, nesterov=True)
SPEC = replace(DATASETS["cifar10"], size=8)
Build = Callable[..., nn.Module]


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _images(seed: int = 3, n: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, 10, (n,), generator=generator)


def _run(model: nn.Module, *, epochs: int | None = None, seed: int = 0, resume: Path | None = None) -> list[Epoch]:
    """Train, and stop (as a killed process does) after `epochs` epochs."""
    told = []
    for epoch in fit(model, *_images(), recipe=RECIPE, spec=SPEC, seed=seed, resume=resume):
        told.append(epoch)
        if len(told) == epochs:
            break
    return told


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(tiny_net: Build) -> None:
    digests = []
    for seed in (0, 0, 1):
        model = tiny_net()
        torch.manual_seed(int(torch.randint(1000, ())))  # the global generator plays no part
        _run(model, seed=seed)
        digests.append(_digest(model))
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("stops", [(1,), (2,), (1, 1), (3,)])
def test_resumed_at_an_epochs_end_is_undisturbed(tiny_net: Build, tmp_path: Path, stops: tuple[int, ...]) -> None:
    undisturbed = tiny_net()
    whole = _run(undisturbed)
    _run(tiny_net(), epochs=stops[0], resume=tmp_path / "resume.pt")
    for stop in stops[1:]:
        _run(tiny_net(seed=9), epochs=stop, resume=tmp_path / "resume.pt")
    last = tiny_net(seed=9)  # everything comes from the file
    rest = _run(last, resume=tmp_path / "resume.pt")
    assert _digest(last) == _digest(undisturbed)
    assert [(e.number, e.loss, e.accuracy) for e in rest] == [
        (e.number, e.loss, e.accuracy) for e in whole[sum(stops) :]
    ]


def test_epochs_and_steps_are_told(tiny_net: Build) -> None:
    steps: list[Step] = []
    epochs = list(fit(tiny_net(), *_images(), recipe=RECIPE, spec=SPEC, seed=0, on_step=steps.append))
    assert [e.number for e in epochs] == [1, 2, 3]
    assert [(s.epoch, s.step, s.steps) for s in steps] == [(e, k, 3) for e in (1, 2, 3) for k in (1, 2, 3)]  # 16+16+8
    first = steps[:3]
    assert epochs[0].loss == pytest.approx(sum(s.loss * n for s, n in zip(first, (16, 16, 8), strict=True)) / 40)
    assert all(0 <= e.accuracy <= 1 and e.images_per_second > 0 for e in epochs)


def test_every_epoch_sees_every_image_once_in_an_order_of_its_own(tiny_net: Build) -> None:
    images = torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1).expand(40, 3, 8, 8).contiguous()
    seen: list[int] = []
    spec = replace(SPEC, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), flip=False)
    model = tiny_net()
    model.register_forward_pre_hook(lambda _, args: seen.extend((args[0][:, 0, 0, 0] * 255).round().int().tolist()))
    list(fit(model, images, _images()[1], recipe=replace(RECIPE, crop_padding=0), spec=spec, seed=0))
    epochs = [tuple(seen[i : i + 40]) for i in (0, 40, 80)]
    assert all(sorted(order) == list(range(40)) for order in epochs)
    assert len(set(epochs)) == 3


def test_it_learns(tiny_net: Build) -> None:
    images, labels = _images(n=64)
    images = images // 8
    images[labels < 5, 0] += 200  # red or not
    recipe = replace(RECIPE, epochs=12)
    epochs = list(fit(tiny_net(), images, (labels < 5).long(), recipe=recipe, spec=SPEC, seed=0))
    assert epochs[-1].accuracy > 0.95 > epochs[0].accuracy


def test_the_images_are_left_as_they_are_and_the_model_is_in_eval_mode(tiny_net: Build) -> None:
    images, labels = _images()
    before = images.clone(), labels.clone()
    model = tiny_net()
    list(fit(model, images, labels, recipe=replace(RECIPE, epochs=1), spec=SPEC, seed=0))
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])
    assert not model.training


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": replace(RECIPE, lr=0.01)},
        {"seed": 1},
        {"images": _images(seed=4)[0]},
        {"labels": _images(seed=4)[1]},
    ],
)
def test_a_state_of_another_run_is_refused(tiny_net: Build, tmp_path: Path, change: dict) -> None:
    resume = tmp_path / "resume.pt"
    _run(tiny_net(), epochs=1, resume=resume)
    images, labels = _images()
    settings = {"images": images, "labels": labels, "recipe": RECIPE, "spec": SPEC, "seed": 0, **change}
    with pytest.raises(CheckpointError, match="belongs to another run"):
        next(fit(tiny_net(), **settings, resume=resume))


def test_what_is_another_runs_is_named_briefly_and_replaced_if_asked_for(tiny_net: Build, tmp_path: Path) -> None:
    resume = tmp_path / "resume.pt"
    _run(tiny_net(), epochs=1, resume=resume)
    settings = {"recipe": replace(RECIPE, lr=0.01), "spec": SPEC, "seed": 1, "resume": resume}
    with pytest.raises(CheckpointError, match=r"another run \(different seed, recipe, network\); use its .*--force$"):
        next(fit(tiny_net(channels=5), *_images(), **settings))
    assert next(fit(tiny_net(channels=5), *_images(), **settings, overwrite=True)).number == 1
    assert next(fit(tiny_net(channels=5), *_images(), **settings)).number == 2


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 garbage", b"\x80\x02}."])
def test_a_damaged_state_is_refused(tiny_net: Build, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "resume.pt").write_bytes(content)
    settings = {"recipe": RECIPE, "spec": SPEC, "seed": 0, "resume": tmp_path / "resume.pt"}
    with pytest.raises(CheckpointError, match="cannot be resumed from"):
        next(fit(tiny_net(), *_images(), **settings))
    assert next(fit(tiny_net(), *_images(), **settings, overwrite=True)).number == 1


def test_a_state_without_a_part_is_refused(tiny_net: Build, tmp_path: Path) -> None:
    resume = tmp_path / "resume.pt"
    _run(tiny_net(), epochs=1, resume=resume)
    whole = torch.load(resume, weights_only=True)
    for part in whole:
        torch.save({name: value for name, value in whole.items() if name != part}, resume)
        with pytest.raises(CheckpointError, match="cannot be resumed from"):
            _run(tiny_net(), resume=resume)


def test_no_flipped_bit_is_trained_on(tiny_net: Build, tmp_path: Path) -> None:
    """Refused, or in a place that means nothing."""
    resume = tmp_path / "resume.pt"
    _run(tiny_net(), epochs=2, resume=resume)
    whole = resume.read_bytes()
    last = tiny_net()
    _run(last, resume=resume)
    wanted, refused = _digest(last), 0
    for place in range(0, len(whole), len(whole) // 200):
        resume.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        model = tiny_net(seed=9)
        try:
            _run(model, resume=resume)
        except CheckpointError:
            refused += 1
        else:
            assert _digest(model) == wanted
    assert refused > 100


def test_a_loss_that_is_no_number_stops_the_run(tiny_net: Build, tmp_path: Path) -> None:
    model = tiny_net()
    model.fc.bias.data.fill_(float("nan"))
    with pytest.raises(SettingError, match="training diverged in epoch 1: the loss is nan"):
        next(fit(model, *_images(), recipe=RECIPE, spec=SPEC, seed=0, resume=tmp_path / "resume.pt"))
    assert not (tmp_path / "resume.pt").exists()


def test_a_penalty_that_is_infinite_stops_the_run(tiny_net: Build) -> None:
    settings = {"recipe": RECIPE, "spec": SPEC, "seed": 0, "penalty": lambda: torch.tensor(float("inf"))}
    with pytest.raises(SettingError, match=r"diverged in epoch 1: the loss is inf.* --recipe .*a smaller flat_norms"):
        next(fit(tiny_net(), *_images(), **settings))


@pytest.mark.parametrize("name", ["fc.bias", "bn1.running_var"])
def test_a_weight_that_is_infinite_stops_the_run(tiny_net: Build, tmp_path: Path, name: str) -> None:
    """The last step's loss was computed before it."""
    model = tiny_net()

    def on_step(step: Step) -> None:
        if step.step == step.steps:
            model.state_dict()[name].fill_(float("inf"))

    settings = {"recipe": RECIPE, "spec": SPEC, "seed": 0, "resume": tmp_path / "resume.pt"}
    with pytest.raises(SettingError, match="diverged in epoch 1: .* or a weight is infinite"):
        next(fit(model, *_images(), **settings, on_step=on_step))
    assert not (tmp_path / "resume.pt").exists()


def test_dropout_is_drawn_from_the_seed_and_the_epoch(tiny_net: Build, tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Dropout2d(0.3), tiny_net())

    digests = []
    for seed in (0, 0, 1):
        model = build()
        torch.manual_seed(len(digests))
        before = torch.random.get_rng_state()
        _run(model, seed=seed)
        assert torch.equal(torch.random.get_rng_state(), before)
        digests.append(_digest(model))
    assert digests[0] == digests[1] != digests[2]
    _run(build(), epochs=1, resume=tmp_path / "resume.pt")
    torch.manual_seed(99)
    last = build()
    _run(last, resume=tmp_path / "resume.pt")
    assert _digest(last) == digests[0]


class Learner(Session):
    """Trains a weight of its own before the first epoch."""

    def begin(self, images: Tensor, *, batch_size: int, vary: object, progress: object = None) -> None:
        linear = nn.Linear(1, 1, bias=False)
        optimiser = torch.optim.SGD(linear.parameters(), lr=1.0)
        self.seen = []
        for _ in range(3):
            answer = linear(torch.ones(1, 1))
            self.seen.append((float(answer.detach()), float(linear.weight.detach())))
            optimiser.zero_grad()
            answer.sum().backward()
            optimiser.step()


def test_a_session_that_trains_in_half_precision_sees_its_new_weights(
    tiny_net: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Autocast keeps a cast weight for as long as its block lasts, unless it is told not to."""
    monkeypatch.setitem(fit.__globals__, "training_dtype", lambda _device, _model: torch.bfloat16)
    session = Learner(BPP(), rate=0.25, spec=SPEC)
    next(fit(tiny_net(), *_images(), recipe=RECIPE, spec=SPEC, seed=0, session=session))
    answers, weights = zip(*session.seen, strict=True)
    assert answers == pytest.approx(weights, rel=0.01)
    assert len(set(weights)) == 3


def test_the_log_holds_the_epochs_of_the_stopped_run(tiny_net: Build, tmp_path: Path) -> None:
    settings = {"recipe": RECIPE, "spec": SPEC, "seed": 0, "resume": tmp_path / "resume.pt"}
    logs: list[list[Epoch]] = [[], []]
    next(fit(tiny_net(), *_images(), **settings, log=logs[0], watch=lambda: {"seen": 1}))
    list(fit(tiny_net(), *_images(), **settings, log=logs[1], watch=lambda: {"seen": 2}))
    assert [(epoch.number, epoch.watched) for epoch in logs[1]] == [
        (1, {"seen": 1}),
        (2, {"seen": 2}),
        (3, {"seen": 2}),
    ]
    assert logs[0] == logs[1][:1]


@pytest.mark.parametrize(
    ("images", "batch", "sizes"),
    [
        (40, 16, [16, 16, 8]),
        (32, 16, [16, 16]),
        (33, 16, [16, 17]),  # BatchNorm cannot train on a single value
        (17, 16, [17]),
        (1, 16, [1]),
        (5, 16, [5]),
        (50_000, 128, [128] * 390 + [80]),
    ],
)
def test_batch_sizes(images: int, batch: int, sizes: list[int]) -> None:
    assert batch_sizes(images, batch) == sizes


def test_a_single_image_left_over_trains_a_network_that_ends_in_one_pixel() -> None:
    model = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 10)
    )
    steps: list[Step] = []
    list(fit(model, *_images(n=33), recipe=RECIPE, spec=SPEC, seed=0, on_step=steps.append))
    assert [(step.step, step.steps) for step in steps] == [(1, 2), (2, 2)] * 3


class Pull:
    """A penalty that is the square of the last bias."""

    def __init__(self, model: nn.Module, weight: float) -> None:
        self.model, self.weight = model, weight

    def __repr__(self) -> str:
        return f"Pull({self.weight})"

    def __call__(self) -> Tensor:
        return self.weight * self.model.fc.bias.square().sum()


def test_a_penalty_is_added_to_the_loss_and_belongs_to_the_run(tiny_net: Build, tmp_path: Path) -> None:
    lengths = []
    for weight in (0.0, 5.0):
        model = tiny_net()
        list(fit(model, *_images(), recipe=RECIPE, spec=SPEC, seed=0, penalty=Pull(model, weight)))
        lengths.append(float(model.fc.bias.detach().norm()))
    assert lengths[1] < lengths[0] / 2
    model = tiny_net()
    settings = {"recipe": RECIPE, "spec": SPEC, "seed": 0, "resume": tmp_path / "resume.pt"}
    next(fit(model, *_images(), **settings, penalty=Pull(model, 5.0)))
    for other in (Pull(model, 4.0), None):
        with pytest.raises(CheckpointError, match=r"belongs to another run \(different attack\)"):
            next(fit(tiny_net(), *_images(), **settings, penalty=other))
    assert [e.number for e in fit(model, *_images(), **settings, penalty=Pull(model, 5.0))] == [2, 3]


@pytest.mark.parametrize("text", ["wanet", "bpp:dithering=true", "inputaware"])
def test_a_controlled_training_depends_on_its_seed_alone(tiny_net: Build, text: str) -> None:
    images, labels = _images()
    data = LabelledImages(images, labels, SPEC)
    digests = []
    for seed in (0, 0, 1):
        attack = parse_attack(text).prepare(data, seed=seed)
        assert isinstance(attack, TrainingControl)
        session = attack.session(rate=0.25, spec=SPEC, seed=seed, epochs=3, device=torch.device("cpu"))
        model = tiny_net()
        torch.manual_seed(int(torch.randint(1000, ())))
        list(fit(model, images, labels, recipe=RECIPE, spec=SPEC, seed=seed, session=session))
        digests.append(_digest(model))
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("text", ["wanet", "bpp", "inputaware"])
@pytest.mark.parametrize("stops", [(1,), (2,), (1, 1)])
def test_a_controlled_training_that_is_resumed_is_undisturbed(
    tiny_net: Build, tmp_path: Path, text: str, stops: tuple[int, ...]
) -> None:
    """Network, and Input-Aware's own networks and optimiser; stage 1 is not run again."""
    images, labels = _images()
    data = LabelledImages(images, labels, SPEC)
    begun: list[int] = []

    def run(model: nn.Module, *, stop: int | None, resume: Path | None) -> str:
        attack = parse_attack(text).prepare(data, seed=0)
        assert isinstance(attack, TrainingControl)
        session = attack.session(rate=0.25, spec=SPEC, seed=0, epochs=3, device=torch.device("cpu"))
        settings = {"recipe": RECIPE, "spec": SPEC, "seed": 0, "session": session, "resume": resume}
        for epoch in fit(model, images, labels, **settings, on_begin=lambda done, _: begun.append(done)):
            if epoch.number == stop:
                break
        trigger = session.result().stamp(images)
        return _digest(model) + hashlib.sha256(trigger.numpy().tobytes()).hexdigest()

    whole = run(tiny_net(), stop=None, resume=None)
    prepared = len(begun)
    for stop in itertools.accumulate(stops):
        run(tiny_net(), stop=stop, resume=tmp_path / "resume.pt")
    assert run(tiny_net(seed=9), stop=None, resume=tmp_path / "resume.pt") == whole
    assert len(begun) == 2 * prepared


def test_augmentation_of_the_attack_replaces_the_recipes(tiny_net: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """WaNet and BPP rotate behind their trigger; Input-Aware takes what the recipe says."""
    seen: list[Augmentation] = []

    def spy(x: Tensor, how: Augmentation, spec: DatasetSpec, generator: torch.Generator) -> Tensor:
        seen.append(how)
        return normalise(x, spec)

    monkeypatch.setitem(fit.__globals__, "vary", spy)
    images, labels = _images()
    for text in ("wanet", "bpp", "inputaware"):
        attack = parse_attack(text).prepare(LabelledImages(images, labels, SPEC), seed=0)
        assert isinstance(attack, TrainingControl)
        session = attack.session(rate=0.25, spec=SPEC, seed=0, epochs=3, device=torch.device("cpu"))
        next(fit(tiny_net(), images, labels, recipe=RECIPE, spec=SPEC, seed=0, session=session))
    post = Augmentation(padding=5, crop_share=0.8, degrees=10, rotate_share=0.5)
    assert seen == [post] * 6 + [Augmentation(padding=2)] * 5  # Input-Aware: two full batches of stage 1, then three


def test_vary_crops_before_it_normalises() -> None:
    """What comes in from outside is black, not grey."""
    images = torch.full((50, 3, 8, 8), 255, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    x = vary(images, Augmentation(padding=2, degrees=10, rotate_share=0.5), SPEC, generator)
    black, white = (0 - SPEC.mean[0]) / SPEC.std[0], (1 - SPEC.mean[0]) / SPEC.std[0]
    assert float(x[:, 0].min()) == pytest.approx(black)
    assert float(x[:, 0].max()) == pytest.approx(white)
    assert x.dtype == torch.float32


def test_a_recipe_without_mirroring_never_mirrors(tiny_net: Build) -> None:
    images = torch.zeros(40, 3, 8, 8, dtype=torch.uint8)
    images[..., 0] = 200  # the left edge
    spec = replace(SPEC, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    edges: dict[bool, set[tuple[bool, bool]]] = {}
    for flip in (True, False):
        seen = edges.setdefault(flip, set())
        model = tiny_net()
        model.register_forward_pre_hook(
            lambda _, args, seen=seen: seen.update((bool(x[0, 0, 0] > 0), bool(x[0, 0, -1] > 0)) for x in args[0])
        )
        list(fit(model, images, _images()[1], recipe=replace(RECIPE, crop_padding=0, flip=flip), spec=spec, seed=0))
    assert edges == {True: {(True, False), (False, True)}, False: {(True, False)}}


def test_adam_takes_the_step_of_adam(tiny_net: Build) -> None:
    """Adam's first step is lr times the sign of the gradient, so no weight moves by more than lr."""
    recipe = replace(RECIPE, epochs=1, batch_size=40, lr=0.01, schedule="cosine", weight_decay=0.0, optimiser="adam")
    model = tiny_net()
    before = [p.detach().clone() for p in model.parameters()]
    list(fit(model, *_images(), recipe=recipe, spec=SPEC, seed=0))
    moved = torch.cat([(p.detach() - old).abs().flatten() for p, old in zip(model.parameters(), before, strict=True)])
    assert float(moved.max()) == pytest.approx(0.01, rel=1e-3)
    assert float(moved.quantile(0.5)) > 0.005
