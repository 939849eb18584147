"""Names and what they stand for."""

import pytest

from unbackdoor.errors import SettingError
from unbackdoor.registry import Registry


@pytest.fixture
def fruit() -> Registry[int]:
    table: Registry[int] = Registry("fruit")
    table.add("pear", 1)
    table.add("apple", 2)
    return table


def test_a_table_in_the_order_of_registration(fruit: Registry[int]) -> None:
    assert list(fruit) == ["pear", "apple"]
    assert (fruit["pear"], len(fruit), "apple" in fruit, "plum" in fruit) == (1, 2, True, False)


def test_an_unknown_name_is_answered_with_the_known_ones(fruit: Registry[int]) -> None:
    with pytest.raises(
        SettingError, match=r"^unknown fruit 'aple': did you mean 'apple'\? Expected one of pear, apple$"
    ):
        fruit["aple"]
    with pytest.raises(SettingError, match=r"^unknown fruit 'zzz': expected one of pear, apple$"):
        fruit["zzz"]


def test_a_name_is_taken_once(fruit: Registry[int]) -> None:
    with pytest.raises(ValueError, match="fruit 'pear' is registered twice"):
        fruit.add("pear", 3)
    assert fruit["pear"] == 1


def test_add_returns_the_entry(fruit: Registry[int]) -> None:
    assert fruit.add("plum", 7) == 7
