"""Rules of the house that no other tool holds."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
PACKAGE = CHECKOUT / "src" / "unbackdoor"
MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((CHECKOUT / "tests").rglob("*.py"))
PYPROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())

#: A file of each folder of algorithms that all of them may import.
#: `best` chooses among the others, so it knows them.
SHARED = {
    "__init__", "auto", "base", "best", "directions", "looking", "norm_channels", "poisoning", "scene", "text",
    "training_control", "tuning",
}  # fmt: skip


def _name(file: Path) -> str:
    return str(file.relative_to(CHECKOUT))


@pytest.mark.parametrize("file", MODULES, ids=_name)
def test_every_module_says_what_it_is(file: Path) -> None:
    docstring = ast.get_docstring(ast.parse(file.read_text()))
    assert docstring
    assert docstring.splitlines()[0].strip()


@pytest.mark.parametrize("file", [*MODULES, *TESTS], ids=_name)
def test_no_file_names_a_place_on_somebodys_machine(file: Path) -> None:
    places = re.compile(r"""(?<![\w.])/(?:home/(?!me\b)\w+|Users/\w+|root|work|mnt|opt|workspace)/|[A-Z]:\\\\Users""")
    if file != Path(__file__):
        assert places.findall(file.read_text()) == []


def test_there_is_no_country_where_everything_lives() -> None:
    assert [_name(f) for f in (*MODULES, *TESTS) if re.fullmatch(r"(utils?|helpers?|misc|common)", f.stem)] == []


def test_test_files_have_names_of_their_own_and_no_packages() -> None:
    """pytest imports them by their base name."""
    stems = [file.stem for file in TESTS if file.name != "conftest.py"]
    assert sorted({stem for stem in stems if stems.count(stem) > 1}) == []
    assert "__init__" not in stems


def test_the_package_is_typed_and_carries_its_marker() -> None:
    assert (PACKAGE / "py.typed").exists()
    assert PYPROJECT["tool"]["mypy"]["strict"] is True


@pytest.mark.parametrize("module", ["unbackdoor", "unbackdoor.report", "unbackdoor.cli", "unbackdoor.errors"])
def test_what_a_laptop_without_torch_can_import(module: str) -> None:
    code = f"import sys; sys.modules['torch'] = None; import {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode == 0


def _contract(name: str) -> dict:
    (contract,) = (c for c in PYPROJECT["tool"]["importlinter"]["contracts"] if c["name"] == name)
    return contract


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("attacks", "Attacks do not know each other"),
        ("defences/data_free", "Data-free defences do not know each other"),
        ("defences/data_based", "Data-based defences do not know each other"),
    ],
)
def test_every_algorithm_is_in_its_contract(folder: str, name: str) -> None:
    files = [file for file in (PACKAGE / folder).glob("*.py") if file.stem not in SHARED]
    if not files:
        pytest.skip(f"no algorithm in {folder} yet")
    prefix = f"unbackdoor.{folder.replace('/', '.')}."
    assert sorted(_contract(name)["modules"]) == sorted(prefix + file.stem for file in files)


def test_every_part_of_the_package_has_its_floor() -> None:
    """Glue between the floors (one public function or two, in a module at the top) is no part."""
    floors = {word for layer in _contract("A file imports from its own floor or below")["layers"] for word in
              re.findall(r"unbackdoor\.(\w+)", layer)}  # fmt: skip
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert sorted(packages - floors) == []


def test_data_free_is_proved_when_it_runs() -> None:
    """Import-linter reads the imports; this makes them."""
    code = (
        "import sys, unbackdoor.defences.data_free, unbackdoor.channel_scores, unbackdoor.prune; "
        "print([m for m in sys.modules if m.split('.')[1:2] in (['data'], ['train'], ['attacks'])])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_windows_can_import_every_module() -> None:
    """Nothing of ours asks for a module that only Unix has, when it is imported."""
    names = [
        ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for file in MODULES
        if file.stem != "__main__"
    ]
    code = (
        "import builtins, importlib\n"
        "unix, real = {'fcntl', 'resource', 'termios', 'tty', 'pwd', 'grp'}, builtins.__import__\n"
        "def windows(name, scope=None, *rest):\n"
        "    if name in unix and (scope or {}).get('__name__', '').startswith('unbackdoor'):\n"
        "        raise ModuleNotFoundError(f'{scope[\"__name__\"]} imports {name}')\n"
        "    return real(name, scope, *rest)\n"
        "builtins.__import__ = windows\n"
        f"for name in {names}: importlib.import_module(name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode == 0
