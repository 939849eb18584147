"""The exception tree is the one that is drawn at the top of its file."""

import re

import pytest

from unbackdoor import errors


def _drawn() -> dict[str, str]:
    """name -> parent, out of the picture."""
    parents, path = {}, []
    for line in errors.__doc__.splitlines():
        match = re.match(r"(?P<bars>[│├└─ ]*)(?P<name>\w+Error)\b", line)
        if match:
            depth = len(match["bars"]) // 4
            path[depth:] = [match["name"]]
            parents[match["name"]] = path[depth - 1] if depth else "Exception"
    return parents


def test_the_drawing_is_the_tree() -> None:
    found = {
        name: cls.__base__.__name__
        for name, cls in vars(errors).items()
        if isinstance(cls, type) and issubclass(cls, Exception)
    }
    assert _drawn() == found


@pytest.mark.parametrize("name", sorted(_drawn()))
def test_one_except_catches_all(name: str) -> None:
    more = ["the report"] if name in ("IncompleteError", "DamageError") else []
    with pytest.raises(errors.UnbackdoorError, match=r"^what came$"):
        raise getattr(errors, name)("what came", *more)


@pytest.mark.parametrize("kind", [errors.IncompleteError, errors.DamageError])
def test_what_is_not_written_has_its_report(kind: type[errors.IncompleteError]) -> None:
    assert kind("half of it", "the report").report == "the report"
