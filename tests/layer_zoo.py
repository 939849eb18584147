"""One small network for every kind of layer that is scored: layer, norm, ReLU, mean over places, Linear."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Net(nn.Module):
    """layer -> norm (or nothing) -> ReLU -> mean over places -> fc."""

    def __init__(self, layer: nn.Module, norm: nn.Module | None, channels: int, places: int = 2) -> None:
        super().__init__()
        self.places = places
        self.layer = layer
        self.norm = norm
        self.fc = nn.Linear(channels, 3)

    def features(self, x: Tensor) -> Tensor:
        """What the norm puts out, or the layer where there is none."""
        x = self.layer(x)
        return x if self.norm is None else self.norm(x)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.features(x))
        return self.fc(x.flatten(2).mean(2) if self.places else x)


@dataclass(frozen=True)
class Kind:
    """A kind of layer.

    Attributes:
        layer: builds one.
        channels: its output channels.
        shape: of one input, without the batch.
        weight_edits: whether its filters can be edited channel by channel.
    """

    layer: Callable[[], nn.Module]
    channels: int
    shape: tuple[int, ...]
    weight_edits: bool = True

    @property
    def places(self) -> int:
        """Number of dimensions that are no channels."""
        return len(self.shape) - 1


def _older_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return weight_norm(nn.Conv2d(3, 8, 3))


KINDS = {
    "linear": Kind(lambda: nn.Linear(6, 8), 8, (6,)),
    "conv1d": Kind(lambda: nn.Conv1d(3, 8, 3), 8, (3, 9)),
    "conv2d": Kind(lambda: nn.Conv2d(3, 8, 3, padding=1, bias=False), 8, (3, 7, 7)),
    "conv2d with bias": Kind(lambda: nn.Conv2d(3, 8, 3), 8, (3, 7, 7)),
    "conv2d 1x1": Kind(lambda: nn.Conv2d(5, 8, 1), 8, (5, 5, 5)),
    "conv3d": Kind(lambda: nn.Conv3d(2, 8, 3), 8, (2, 5, 5, 5)),
    "strided": Kind(lambda: nn.Conv2d(3, 8, 5, stride=2, dilation=2), 8, (3, 15, 15)),
    "grouped": Kind(lambda: nn.Conv2d(6, 8, 3, groups=2), 8, (6, 7, 7)),
    "depthwise": Kind(lambda: nn.Conv2d(8, 8, 3, groups=8), 8, (8, 7, 7)),
    "transposed1d": Kind(lambda: nn.ConvTranspose1d(4, 8, 3), 8, (4, 7)),
    "transposed2d": Kind(lambda: nn.ConvTranspose2d(4, 8, 3), 8, (4, 7, 7)),
    "transposed3d": Kind(lambda: nn.ConvTranspose3d(4, 8, 2), 8, (4, 4, 4, 4)),
    "transposed grouped": Kind(lambda: nn.ConvTranspose2d(4, 8, 3, groups=2), 8, (4, 7, 7)),
    "weight_norm": Kind(lambda: parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), 8, (3, 7, 7)),
    "weight_norm linear": Kind(lambda: parametrizations.weight_norm(nn.Linear(6, 8)), 8, (6,)),
    "older weight_norm": Kind(_older_weight_norm, 8, (3, 7, 7)),
    "weight_norm transposed": Kind(
        lambda: parametrizations.weight_norm(nn.ConvTranspose2d(4, 8, 3)), 8, (4, 7, 7), weight_edits=False
    ),
    "spectral_norm": Kind(lambda: parametrizations.spectral_norm(nn.Conv2d(3, 8, 3)), 8, (3, 7, 7), weight_edits=False),
    "older spectral_norm": Kind(lambda: spectral_norm(nn.Conv2d(3, 8, 3)), 8, (3, 7, 7), weight_edits=False),
}
PLAIN = [name for name in KINDS if "_norm" not in name]


def network(
    name: str,
    *,
    norm: bool = True,
    affine: bool = True,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    outliers: bool = True,
) -> Net:
    """The network of one kind in eval mode, with norms that are not the identity.

    Args:
        name: of the kind.
        norm: whether a BatchNorm follows.
        affine: whether it has gamma and beta.
        dtype: of all its tensors.
        seed: of its weights.
        outliers: whether channel 2 is far above the others and channel 5 below.
    """
    kind = KINDS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = kind.layer()
        batch_norm = _NORMS[max(kind.places, 1)](kind.channels, affine=affine) if norm else None
        model = Net(layer, batch_norm, kind.channels, kind.places)
        if isinstance(batch_norm, nn.Module):
            randomise(batch_norm)
        # Parametrized weights are normalised: their outliers come from the norm.
        if outliers and kind.weight_edits:
            rescale(layer, 2, 30.0)
            rescale(layer, 5, 0.01)
        elif outliers and batch_norm is not None and affine:
            with torch.no_grad():
                batch_norm.weight[2] *= 30
                batch_norm.weight[5] *= 0.01
        elif outliers and batch_norm is not None:
            batch_norm.running_var[2] /= 900
    return model.to(dtype).eval()


def randomise(norm: nn.Module) -> None:
    """Give a BatchNorm parameters and statistics as training would."""
    with torch.no_grad():
        norm.running_mean.normal_(std=0.3)
        norm.running_var.uniform_(0.5, 1.5)
        if norm.affine:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(std=0.3)
            norm.weight[1] *= -1  # the sign of gamma says nothing


def calibrate(model: nn.Module, batch: Tensor, *, keep_var: bool = False) -> nn.Module:
    """Give the norms of a network the statistics of a batch, as training does; in eval mode afterwards.

    Args:
        model: any network.
        batch: of inputs whose mean is not zero, or its first layer's statistics say nothing.
        keep_var: whether the running variances stay what they were.
    """
    norms = [m for m in model.modules() if isinstance(getattr(m, "running_var", None), Tensor)]
    before = [(norm.momentum, norm.running_var.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(batch)
        for norm, (momentum, var) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if keep_var:
                norm.running_var.copy_(var)
    return model.eval()


def rescale(layer: nn.Module, channel: int, factor: float) -> None:
    """Multiply one output channel's filter."""
    with torch.no_grad():
        if hasattr(layer, "weight_g"):
            layer.weight_g[channel] *= factor
        elif hasattr(layer, "parametrizations"):
            layer.parametrizations.weight.original0[channel] *= factor
        else:
            filters_of(layer)[channel].mul_(factor)


def filters_of(layer: nn.Module) -> list[Tensor]:
    """Views of the weights of every output channel of a plain layer, found by its definition."""
    weight = layer.weight.detach()
    if not getattr(layer, "transposed", False):
        return list(weight)
    per_group = layer.out_channels // layer.groups
    rows = weight.chunk(layer.groups)  # a group's input channels
    return [rows[j // per_group][:, j % per_group] for j in range(layer.out_channels)]


def inputs(name: str, *, batch: int = 4, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    """Random inputs for the network of one kind."""
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(batch, *KINDS[name].shape, generator=generator)).to(dtype)


def snapshot(model: nn.Module) -> dict[str, object]:
    """Everything about a network and the random state that a reader must leave as it was; compare with ==."""
    state: dict[str, object] = {"rng": torch.get_rng_state().numpy().tobytes()}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        state[name] = (bits(tensor), tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad, id(tensor))
        state[name + ".grad"] = None if tensor.grad is None else (id(tensor.grad), bits(tensor.grad))
    for path, module in model.named_modules():
        hooks = [dict(value) for key, value in sorted(vars(module).items()) if "hooks" in key and value is not None]
        held = {key: id(value) if isinstance(value, Tensor) else type(value) for key, value in vars(module).items()}
        state[path + " module"] = (id(module), module.training, list(held.items()), hooks)
    return state


def bits(tensor: Tensor) -> bytes:
    """The content, NaN payloads included."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def same_state(a: nn.Module, b: nn.Module) -> bool:
    """Whether two networks hold the same tensors, bit for bit."""
    left, right = a.state_dict(), b.state_dict()
    return list(left) == list(right) and all(bits(left[name]) == bits(right[name]) for name in left)
