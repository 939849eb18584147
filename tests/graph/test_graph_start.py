"""What reading a graph costs before it starts: nothing that `import torch` has not loaded already."""

from __future__ import annotations

import subprocess
import sys

import pytest


def _loads(code: str) -> list[str]:
    """Modules of torch's compiler, or of anything but the package itself, that code loads on top of torch."""
    script = f"import sys, torch; before = set(sys.modules)\n{code}\nprint(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    "code",
    [
        "import unbackdoor.graph",
        "from unbackdoor.models import parse_arch; parse_arch('resnet18').build(device='meta')",
        "from unbackdoor.models import parse_arch; import unbackdoor.graph as g\n"
        "g.layer_graph(parse_arch('preactresnet18').build(device='meta'))",
    ],
    ids=["import", "build", "read"],
)
def test_no_compiler_is_loaded(code: str) -> None:
    loaded = _loads(code)
    assert [name for name in loaded if name.startswith(("torch._dynamo", "torch._inductor", "sympy", "mpmath"))] == []
    assert [name for name in loaded if name.startswith("torch")] in ([], ["torch.utils._device"])


def test_initialisers_still_fill_what_has_values() -> None:
    import torch

    from unbackdoor.models import parse_arch

    torch.manual_seed(0)
    first = parse_arch("resnet18:width=4").build().state_dict()
    torch.manual_seed(0)
    second = parse_arch("resnet18:width=4").build().state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert first["conv1.weight"].std() > 0.1


def test_networks_that_compute_while_they_are_built_are_built_all_the_same() -> None:
    pytest.importorskip("torchvision")
    from unbackdoor.models import parse_arch

    model = parse_arch("torchvision:regnet_y_400mf").build(device="meta")
    assert not any(parameter.is_meta for parameter in model.parameters())
