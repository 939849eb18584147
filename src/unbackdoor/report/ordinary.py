"""When what a data-free method would prune is out of the ordinary, and how that is said.

The limits are no theory: they are the largest shares that LPP and CLP, at their defaults, and LPP by either norm pruned
of the networks in `benchmarks/cut_shares.json` (`benchmarks/cut_shares.py` measures them anew), backdoored ones among
them. More than that says that a network is unlike those, not what is in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unbackdoor.report.record import Report

#: The methods that were measured.
METHODS = ("lpp", "clp")
#: The largest share of layers with a pruned channel, and of pruned channels, among the measured networks.
MOST_LAYERS, MOST_CHANNELS = 0.50, 0.0125
#: Fewer say nothing: in a small network a single channel is a large share.
FEW = 10
MEASURED = "in the networks that were measured (ResNet-18 of width 16, with and without a backdoor)"


def unusual(report: Report) -> str | None:
    """What to say where more is pruned than in any network that was measured; None where it is not."""
    if report.method not in METHODS or not report.channels:
        return None
    hit, pruned = sum(1 for layer in report.layers if layer.pruned), report.pruned
    many_layers = hit >= FEW and hit / len(report.layers) > MOST_LAYERS
    many_channels = pruned >= FEW and pruned / report.channels > MOST_CHANNELS
    if not many_layers and not many_channels:
        return None
    done, may = ("were", "may have cost") if report.changed else ("would be", "may cost")
    return (
        f"{hit:,} of {len(report.layers):,} layers and {pruned / report.channels:.1%} of all channels {done} pruned; "
        f"{MEASURED} it was at most {MOST_LAYERS:.0%} of the layers and {MOST_CHANNELS:.2%} of the channels: this may "
        f"be no backdoor, and the repair {may} accuracy. Measure it before the repaired network is used."
    )
