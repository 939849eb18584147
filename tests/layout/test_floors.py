"""The picture of docs/architecture.md, measured: floors, circles, and how much one folder holds."""

import ast
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "unbackdoor"
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_FLOORS = 10
LARGEST_SHARE = 0.12


def _module(file: Path) -> str:
    parts = ("unbackdoor", *file.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module(file): file for file in FILES}


def _room(module: str) -> str:
    """The folder that a file stands in, or a file at the top by itself."""
    return ".".join(module.split(".")[:2])


def _imports(file: Path) -> set[str]:
    """Every module of the package that a file names in an import, also inside functions and for types alone."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found |= {name if name in MODULES else node.module} & MODULES.keys()
    return found - {_module(file)}


ARROWS = {module: _imports(file) for module, file in MODULES.items()}


def _order(arrows: dict[str, set[str]]) -> list[str]:
    try:
        return list(TopologicalSorter(arrows).static_order())
    except CycleError as error:
        circle = error.args[1]
        pytest.fail("a circle of imports: " + "\n".join(f"{b} imports {a}" for a, b in pairwise(circle)))


def test_no_file_imports_itself_by_a_detour() -> None:
    """A package's own __init__ only gathers names, and is left out: it stands for the files that it gathers."""
    gathers = {module for module, file in MODULES.items() if file.name == "__init__.py"}
    _order({module: arrows - gathers for module, arrows in ARROWS.items() if module not in gathers})


def test_the_floors_can_be_counted_on_ten_fingers() -> None:
    """A room stands above all that it imports."""
    rooms: dict[str, set[str]] = {}
    for module, arrows in ARROWS.items():
        if module != "unbackdoor":  # the public names: it gathers from every floor and nothing imports it
            below = rooms.setdefault(_room(module), set())
            below |= {_room(name) for name in arrows if name != "unbackdoor"} - {_room(module)}
    floors: dict[str, int] = {}
    for room in _order(rooms):
        floors[room] = 1 + max((floors[below] for below in rooms.get(room, ())), default=0)
    assert max(floors.values()) <= MOST_FLOORS, sorted(floors.items(), key=lambda item: item[1])


def test_no_folder_holds_much_more_than_the_others() -> None:
    lines = {module: len(file.read_text().splitlines()) for module, file in MODULES.items()}
    rooms: dict[str, int] = {}
    for module, count in lines.items():
        rooms[_room(module)] = rooms.get(_room(module), 0) + count
    total = sum(lines.values())
    assert {room: count for room, count in rooms.items() if count > LARGEST_SHARE * total} == {}
