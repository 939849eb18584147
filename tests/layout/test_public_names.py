"""The names that users import: they are all there, and `import unbackdoor` alone loads nothing behind them."""

import subprocess
import sys

import pytest

import unbackdoor


@pytest.mark.parametrize("name", unbackdoor.__all__)
def test_every_public_name_is_there_and_has_a_docstring(name: str) -> None:
    assert getattr(unbackdoor, name).__doc__


def test_the_lists_agree() -> None:
    assert sorted(unbackdoor.__all__) == dir(unbackdoor) == sorted(unbackdoor._HOME)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'unbackdoor' has no attribute 'cure'"):
        _ = unbackdoor.cure


def test_importing_the_package_loads_no_torch() -> None:
    code = (
        "import sys, unbackdoor; print('torch' in sys.modules, [m for m in sys.modules if m.startswith('unbackdoor.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False []\n"
