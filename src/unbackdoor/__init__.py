"""Find and repair backdoored neural networks, with no data.

outcome = unbackdoor.LPP()(model)          any nn.Module; the input is never changed
report = unbackdoor.scan("model.safetensors", arch="resnet18")
report = unbackdoor.repair("model.pt", "repaired.safetensors", arch="resnet18")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from unbackdoor.findings.values import render_with

if TYPE_CHECKING:
    from unbackdoor.api import defend, detect, evaluate, load_model, predict_damage, repair, scan, witness
    from unbackdoor.attacks import ATTACKS, parse_attack
    from unbackdoor.channel_scores import channel_lipschitz
    from unbackdoor.checkpoint import load, save
    from unbackdoor.defences.base import Outcome
    from unbackdoor.defences.data_free import CLP, LPP, best
    from unbackdoor.defences.table import parse_method
    from unbackdoor.errors import UnbackdoorError
    from unbackdoor.findings import Report
    from unbackdoor.findings.layers import LayerGraph
    from unbackdoor.graph import layer_graph
    from unbackdoor.prune import Plan

#: Public name -> the module that defines it; imported on first use, so that `import unbackdoor` costs nothing.
_HOME = {
    "ATTACKS": "attacks",
    "CLP": "defences.data_free",
    "LPP": "defences.data_free",
    "LayerGraph": "findings.layers",
    "Outcome": "defences.base",
    "Plan": "prune",
    "Report": "findings",
    "UnbackdoorError": "errors",
    "best": "defences.data_free",
    "channel_lipschitz": "channel_scores",
    "defend": "api",
    "detect": "api",
    "evaluate": "api",
    "layer_graph": "graph",
    "load": "checkpoint",
    "load_model": "api",
    "parse_attack": "attacks",
    "parse_method": "defences.table",
    "predict_damage": "api",
    "repair": "api",
    "save": "checkpoint",
    "scan": "api",
    "witness": "api",
}

__all__ = [
    "ATTACKS",
    "CLP",
    "LPP",
    "LayerGraph",
    "Outcome",
    "Plan",
    "Report",
    "UnbackdoorError",
    "best",
    "channel_lipschitz",
    "defend",
    "detect",
    "evaluate",
    "layer_graph",
    "load",
    "load_model",
    "parse_attack",
    "parse_method",
    "predict_damage",
    "repair",
    "save",
    "scan",
    "witness",
]


def _render(found: object, form: str) -> str:
    """Values know no renderer (`findings`), and renderers are loaded when one is asked for: they meet here."""
    from unbackdoor.report import render

    return render(found, form)


render_with(_render)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'unbackdoor' has no attribute {name!r}")
    return getattr(importlib.import_module(f"unbackdoor.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
