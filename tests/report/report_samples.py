"""Reports to render: ordinary, hostile, empty, incomplete, huge."""

from __future__ import annotations

import dataclasses
import random
import statistics
from html.parser import HTMLParser

from unbackdoor.findings import ClassifierReport, LayerReport, Remark, Report
from unbackdoor.report.pages import environment

HOSTILE = {
    "ansi": "\x1b[31mred\x1b[0m\x1b]0;owned\x07",
    "c1": "\x9b31m",
    "script": "<script>document.title='owned'</script>",
    "img": '"><img src=x onerror="document.title=\'owned\'">',
    "single": "'><svg onload=alert(1)>",
    "style": "</style></title><script>alert(1)</script>",
    "comment": "--><!-- ]]>",
    "entity": "&lt;b&gt;&#60;script&#62;",
    "newlines": "a\nb\r\nc\u2028d\u2029e\x85f",
    "rich": "[red]bold[/red][link=file:///etc/passwd]x[/link]",
    "formula": "=cmd|'/C calc'!A0",
    "bidi": "\u202egnp.exe\u2066\u200f",
    "zero width": "a\u200bb\ufeffc\u00add",
    "surrogate": "a\ud800b\udfffc",
    "nul": "a\x00b",
    "noncharacter": "a\uffffb\U000e0001c",
    "wide": "\u5c42" * 300,
    "marks": "e" + "\u0301" * 5000,
    "very long": "layer." * 20_000,
    "percent": "a%2e%2e/%s{0}{x!r}",
    "empty": "",
}


def a_layer(
    path: str = "layer1.0.conv1",
    *,
    channels: int = 64,
    outliers: int = 2,
    seed: int = 0,
    z_upper: float = 3.0,
    z_band: float = 1.5,
    **changes: object,
) -> LayerReport:
    """A layer with that many scores far above the others, cut as LPP cuts."""
    draw = random.Random(seed)
    scores = [max(draw.gauss(1.0, 0.1), 0.0) for _ in range(channels)]
    for channel in draw.sample(range(channels), outliers):
        scores[channel] = draw.uniform(2.0, 3.0)
    mean, std = statistics.fmean(scores), statistics.pstdev(scores)
    high, low, start = mean + z_upper * std, mean - 3.0 * std, mean + (z_upper - z_band) * std
    near = tuple(c for c, score in enumerate(scores) if start < score < high)
    layer = LayerReport(
        path=path,
        kind="Conv2d",
        norm="layer1.0.bn1",
        rule="fx",
        scores=tuple(scores),
        mean=mean,
        std=std,
        lower=low,
        band=start,
        upper=high,
        pruned_high=tuple(c for c, score in enumerate(scores) if score > high),
        pruned_low=tuple(c for c, score in enumerate(scores) if score < low),
        scaled=near,
        factors=tuple(mean / scores[c] for c in near),
    )
    return dataclasses.replace(layer, **changes)  # type: ignore[arg-type]


def a_report(*layers: LayerReport, **changes: object) -> Report:
    """A complete report of a scan."""
    report = Report(
        action="scan",
        method="LPP",
        settings={"upper": 3.0, "lower": float("-inf"), "band": 1.5, "norm_factor": "folded", "unused": None},
        layers=layers or (a_layer(), a_layer("layer2.0.conv1", outliers=0, seed=1)),
        classifier=ClassifierReport(
            path="linear",
            guessed_class=3,
            features=512,
            cut=(7, 200),
            gaps=(0.5, 0.25),
            class_means=(0.1, 0.0, 0.05, 0.4),
        ),
        left_alone=(Remark("linear", "Linear", "its rows are classes"),),
        source="models/resnet18.safetensors",
        digest="ab" * 32,
        arch="resnet18",
    )
    return dataclasses.replace(report, **changes)  # type: ignore[arg-type]


def a_hostile_report(name: str) -> Report:
    """A report whose every text is that name."""
    layer = a_layer(name, kind=name, norm=name, rule=name, notes=(name,), not_finite=(5,))
    remarks = tuple(Remark(f"{name}{index}", name, name) for index in range(5))
    assert a_report().classifier is not None
    return a_report(
        layer,
        action=name,
        method=name,
        settings={name: name, "upper": 3.0},
        classifier=dataclasses.replace(a_report().classifier, path=name),
        not_covered=remarks,
        left_alone=(Remark(name, name, name),),
        unpaired_norms=(name, name + "2"),
        source=name,
        digest=name,
        arch=name,
        output=name,
    )


def a_bare_report() -> Report:
    """Nothing was scored."""
    return Report(action="scan", method="LPP", settings={})


def a_report_without_findings() -> Report:
    """Scores were read, and none stands out."""
    layer = a_layer(outliers=0, z_upper=6.0, z_band=0.5)
    assert not layer.pruned
    assert not layer.scaled
    return a_report(layer, classifier=None, left_alone=())


def a_huge_report() -> Report:
    """200 layers of 2,048 channels."""
    base = [a_layer(channels=2048, outliers=10 * seed, seed=seed) for seed in range(4)]
    return a_report(*(dataclasses.replace(base[i % 4], path=f"stage{i // 10}.block{i % 10}.conv") for i in range(200)))


def part(template: str, macro: str, *values: object) -> str:
    """What a template's macro makes of plain values."""
    return getattr(environment().get_template(template).module, macro)(*values)


class Structure(HTMLParser):
    """A page's elements and attribute names in order, and its visible text."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "path", "use", "rect", "line", "circle"})

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.values: list[str] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.values += [value or "" for _, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.values += [value or "" for _, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag in self.VOID:
            return
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())
