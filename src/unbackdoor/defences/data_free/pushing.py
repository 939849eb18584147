"""Prune what pushes: channels that speak for the suspected class are switched off, one at a time. It needs no data, and
has no paper of its own.

Symbols:
    t           the suspected class, or one that was given
    s(c)        the share of the impressions, not answered with t, that channel c moves to t when it fires
                (`defender.stimulation`)
    z(c)        how far the channel's spectral norm lies above the layer's mean, in deviations: CLP's score

Each step measures s anew, and prunes the channel with the largest, if

    s(c) > `alone`, or s(c) > `outlier` and z(c) > `deviations`

A channel that pushes hard is pruned for that; one that pushes less must also be an outlier. After `channels` channels,
or when none is left, the ways into t are searched again.

Why one at a time: channels of one path push because of each other, and pruning the last of them silences the rest. It
costs little where few channels carry the trigger (WaNet). It fails where many do, each a little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from unbackdoor.channel_scores import scores_of
from unbackdoor.defences.base import DEFENCES
from unbackdoor.defences.data_free.looking import InRounds, Step
from unbackdoor.defences.data_free.scene import Scene, WaysIn
from unbackdoor.defender.case import Progress
from unbackdoor.defender.stimulation import Firing, moved
from unbackdoor.defender.ways_in import PUSHES, Way
from unbackdoor.findings.layers import Layer
from unbackdoor.graph.tensors import Tensors
from unbackdoor.prune import Editor
from unbackdoor.settings import setting


@dataclass(frozen=True, kw_only=True)
class Pushing(InRounds):
    """Switch off the channels that push answers to the suspected class."""

    name: ClassVar[str] = "pushing"
    title: ClassVar[str] = "Prune what pushes"
    passes: ClassVar[str] = "about 130,000 passes of one generated image, for ten classes"

    rounds: int = setting(2, "searches for easy ways, each followed by an edit", least=1, own=True)
    channels: int = setting(6, "channels that are pruned at most in a round", least=1, own=True)
    alone: float = setting(PUSHES, "share of answers above which a channel is pruned", least=0, most=1, own=True)
    outlier: float = setting(0.1, "the same for a channel whose norm is an outlier", least=0, most=1, own=True)
    deviations: float = setting(3.0, "above the layer's mean, from which on a norm is an outlier", own=True)

    def begin(self, scene: Scene, search: WaysIn) -> Step:
        """Each round prunes until no channel pushes."""
        left = dict(zip(search.firings, _deviations(scene, search.firings), strict=True))

        def step(_found: Sequence[Way], progress: Progress) -> str:
            pruned = list[str]()
            while left and len(pruned) < self.channels:
                progress(len(pruned), self.channels, f"channels that push answers to class {search.label}")
                shares = dict(zip(left, moved(scene.shown, tuple(left), scene.seen.drawn, search.label), strict=True))
                firing = max(
                    (
                        one
                        for one in left
                        if shares[one] > (self.outlier if left[one] > self.deviations else self.alone)
                    ),
                    key=lambda one: shares[one],
                    default=None,
                )
                if firing is None:
                    break
                del left[firing]
                if _switch_off(scene, scene.graph[firing.layer], firing.channel):
                    pruned.append(f"{firing.channel} of {firing.layer} ({shares[firing]:.0%})")
            return f"Channels pruned: {', '.join(pruned)}." if pruned else "No channel that pushes could be pruned."

        return step


def _deviations(scene: Scene, firings: Sequence[Firing]) -> list[float]:
    """z of each."""
    layers = [scene.graph[path] for path in dict.fromkeys(firing.layer for firing in firings)]
    scores = scores_of(Tensors(scene.shown.model), layers, scene.graph, norm="spectral", factor="folded")
    known = {
        layer.path: (score - score.mean()) / score.std(correction=0)
        for layer, score in zip(layers, scores, strict=True)
    }
    return [float(known[firing.layer][firing.channel]) for firing in firings]


def _switch_off(scene: Scene, layer: Layer, channel: int) -> bool:
    """Prune a channel in place; whether its tensors could be changed."""
    tensors = Tensors(scene.shown.model)
    editor = Editor(tensors, scene.graph)
    if editor.off(layer, channel) is not None:
        return False
    with torch.no_grad():
        for edit in editor.edits:
            tensors[edit.name][edit.index] = edit.after
    return True


DEFENCES.add(Pushing.name, Pushing)
