"""docs/attacks.md says what the registry says, and every attack has something to say."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from unbackdoor.attacks import ATTACKS
from unbackdoor.settings import setting_fields, settings_of

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_tables", DOCS / "make_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_in_sync(script: ModuleType) -> None:
    for page in script.SECTIONS:
        text = (DOCS / page).read_text(encoding="utf-8")
        assert script.rewritten(page, text) == text, "run python docs/make_tables.py"


def test_what_is_stale_is_found_and_mended(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    current = (DOCS / "attacks.md").read_text(encoding="utf-8")
    (tmp_path / "attacks.md").write_text(current.replace("data poisoning", "data posioning"), encoding="utf-8")
    monkeypatch.setattr(script, "HERE", tmp_path)
    monkeypatch.setattr(script, "SECTIONS", {"attacks.md": script.SECTIONS["attacks.md"]})
    assert script.main(["--check"]) == 1
    assert "attacks.md: out of date; run python docs/make_tables.py" in capsys.readouterr().err
    assert script.main([]) == 0
    assert (tmp_path / "attacks.md").read_text(encoding="utf-8") == current
    assert script.main(["--check"]) == 0
    with pytest.raises(ValueError, match="expected <!-- overview -->"):
        script.rewritten("attacks.md", "no place for a table")


@pytest.mark.parametrize("name", list(ATTACKS))
def test_every_attack_describes_its_settings_and_departures(script: ModuleType, name: str) -> None:
    kind = ATTACKS[name]
    assert {field.name for field in setting_fields(kind)} == set(settings_of(kind))
    paragraphs = script.paragraphs_of(sys.modules[kind.__module__])
    assert sum(text.startswith("Departures: ") for text in paragraphs) == 1
    assert kind.paper.short in paragraphs[0]
