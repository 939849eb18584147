"""When what a data-free method prunes is out of the ordinary.

The limits are the largest shares that LPP and CLP, at their defaults, and LPP by either norm pruned of the networks in
`studies/cut_shares.json` (`studies/cut_shares.py` measures them anew), backdoored ones among them. More than that says
that a network is unlike those, not what is in it.
"""

from __future__ import annotations

#: The methods that were measured.
MEASURED_METHODS = ("lpp", "clp")
#: The largest share of layers with a pruned channel, and of pruned channels, among the measured networks.
MOST_LAYERS, MOST_CHANNELS = 0.50, 17 / 1200
#: Fewer say nothing: in a small network a single channel is a large share.
FEW = 10
MEASURED = "In the networks measured so far (ResNet-18 of width 16, with and without a backdoor, and a MobileNetV2)"


def unusual(
    method: str, *, hit_layers: int, layers: int, pruned_channels: int, channels: int, changed: bool
) -> str | None:
    """A warning if more is pruned than in any network measured so far; None if not.

    Args:
        method: its name.
        hit_layers: of the scored `layers`, how many have a pruned channel.
        layers: how many were scored.
        pruned_channels: of the scored `channels`, how many are pruned.
        channels: how many were scored.
        changed: whether that was done, rather than planned.
    """
    if method not in MEASURED_METHODS or not channels:
        return None
    many_layers = hit_layers >= FEW and hit_layers / layers > MOST_LAYERS
    many_channels = pruned_channels >= FEW and pruned_channels / channels > MOST_CHANNELS
    if not many_layers and not many_channels:
        return None
    done, may = ("The repair pruned", "may have cost") if changed else ("A repair would prune", "may cost")
    return (
        f"{done} {pruned_channels / channels:.1%} of all channels, in {hit_layers:,} of {layers:,} layers. {MEASURED}, "
        f"it was at most {MOST_CHANNELS:.2%} of the channels and {MOST_LAYERS:.0%} of the layers. The outliers may not "
        f"come from a backdoor, and the repair {may} accuracy. Measure accuracy before you use the repaired network."
    )
