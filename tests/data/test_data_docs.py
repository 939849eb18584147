"""docs/data.md says what the code says."""

from dataclasses import fields
from pathlib import Path

from unbackdoor.data import DATASETS, DatasetSpec
from unbackdoor.data.own import OwnData

TEXT = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def _row(spec: DatasetSpec) -> str:
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (spec.mean, spec.std))
    cells = [f"`{spec.name}`", spec.title, str(spec.num_classes), str(spec.size), mean, std]
    cells += ["yes" if spec.flip else "no", "resized" if spec.resize else "refused", ", ".join(spec.splits)]
    return "| " + " | ".join(cells) + " |"


def test_the_table_of_data_sets() -> None:
    first = TEXT.splitlines().index("|---|---|---|---|---|---|---|---|---|") + 1
    assert TEXT.splitlines()[first : first + len(DATASETS)] == [_row(DATASETS[name]) for name in DATASETS]


def test_every_key_of_a_data_toml_is_there() -> None:
    keys = [line for line in TEXT.splitlines() if line.startswith("| `") and "cifar" not in line]
    assert [field.name for field in fields(OwnData) if not any(f"`{field.name}`" in line for line in keys)] == []
