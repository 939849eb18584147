"""Claims side by side: a table for each data set, network, recipe and rate; a row a method, a column an attack."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from unbackdoor.report.benchmark.claims import NONE, Claim, ClaimedGrid, Count
from unbackdoor.report.benchmark.paper import METHODS, Printed, printed

#: Below this, in percent, an attack has not been established: nothing can be said of a defence against it.
ESTABLISHED = 80.0
#: Student's t for a two-sided 95 % interval, by degrees of freedom from 1.
T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Mean:
    """Of one value a seed.

    Attributes:
        value: the mean.
        half: half of its 95 % interval by Student's t; None for a single seed.
        seeds: how many.
    """

    value: float
    half: float | None
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean | None:
        """None of nothing."""
        if not values:
            return None
        n = len(values)
        half = None
        if n > 1:
            t = T95[n - 2] if n - 2 < len(T95) else 1.96 + 2.5 / (n - 1)
            half = t * statistics.stdev(values) / math.sqrt(n)
        return cls(statistics.fmean(values), half, n)


@dataclass(frozen=True)
class Column:
    """A backdoor: an attack at the table's rate, with its number of epochs; or the clean network."""

    attack: str
    target: int
    epochs: int
    title: str

    @property
    def clean(self) -> bool:
        """Whether it is the clean network's."""
        return self.attack == NONE


@dataclass(frozen=True)
class Line:
    """A method, with its share of clean images."""

    method: str
    clean: float | None
    title: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a method did to a column's networks.

    Attributes:
        acc, asr, ra: in percent, over the seeds.
        acc_change, der: in points, and in [0, 1], each against the same network before.
        seconds: of the method alone.
        claims: behind it, finished ones.
        failed: those that failed.
        paper: what the paper prints there.
    """

    acc: Mean | None = None
    asr: Mean | None = None
    ra: Mean | None = None
    acc_change: Mean | None = None
    der: Mean | None = None
    seconds: float | None = None
    claims: tuple[Claim, ...] = ()
    failed: tuple[Claim, ...] = ()
    paper: Printed | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table.

    Attributes:
        data, arch, recipe, rate: what is the same in all of it; `rate` is None where only clean networks are.
        titles: of data and arch, for readers.
        columns, lines: in the order of the paper, then of the claims.
        entries: by line and column; a cell that no claim is about is missing.
    """

    data: str
    arch: str
    recipe: str
    rate: float | None
    titles: dict[str, str] = field(default_factory=dict)
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    entries: dict[tuple[Line, Column], Entry]

    @property
    def title(self) -> str:
        """For a reader."""
        rate = "" if self.rate is None else f", {100 * self.rate:g} % poisoned"
        return f"{self.titles['data']}, {self.titles['arch']}{rate}, recipe {self.recipe}"

    @cached_property
    def attacks(self) -> tuple[Column, ...]:
        """The columns with a trigger."""
        return tuple(column for column in self.columns if not column.clean)

    @cached_property
    def established(self) -> tuple[Column, ...]:
        """Attacks whose ASR before any defence is high enough to say something of defences."""
        return tuple(column for column in self.attacks if (self.asr_before(column) or 0) >= ESTABLISHED)

    def asr_before(self, column: Column) -> float | None:
        """In percent, without a defence."""
        for line in self.lines:
            entry = self.entries.get((line, column))
            if line.method == NONE and entry is not None and entry.asr is not None:
                return entry.asr.value
        return None

    def average(self, line: Line) -> tuple[float, float, float | None] | None:
        """ACC, ASR and DER of a method over the established attacks; None where one of them was not run."""
        found = [self.entries.get((line, column)) for column in self.established]
        if not found or any(entry is None or entry.acc is None or entry.asr is None for entry in found):
            return None
        entries = [entry for entry in found if entry is not None]
        acc = statistics.fmean(e.acc.value for e in entries if e.acc is not None)
        asr = statistics.fmean(e.asr.value for e in entries if e.asr is not None)
        ders = [e.der.value for e in entries if e.der is not None]
        return acc, asr, statistics.fmean(ders) if len(ders) == len(entries) else None

    def seconds(self, method: str, *clean: float | None) -> float | None:
        """Of a method: the median over the columns' medians, of these shares of clean images or of all."""
        found = [
            entry.seconds
            for (line, _), entry in self.entries.items()
            if line.method == method and (not clean or line.clean in clean) and entry.seconds is not None
        ]
        return statistics.median(found) if found else None

    @cached_property
    def winners(self) -> dict[Column, tuple[Line | None, Line | None]]:
        """The best of each column by ACC - ASR and by DER."""
        return {c: (self.best(c, acc_minus_asr), self.best(c, effectiveness)) for c in self.columns}

    def best(self, column: Column, rule: Callable[[Claim], float | None]) -> Line | None:
        """The defence with the largest mean of a rule over the seeds that all of them share; None without such seeds.

        Only where the attack is established: where it is not, doing nothing wins.
        """
        if column not in self.established:
            return None
        values: dict[Line, dict[int, list[float]]] = {}
        for line in self.lines:
            entry = self.entries.get((line, column))
            if line.method == NONE or entry is None:
                continue
            for claim in entry.claims:
                value = rule(claim)
                if value is not None:
                    values.setdefault(line, {}).setdefault(claim.seed, []).append(value)
        if len(values) < 2:
            return None
        shared = set.intersection(*(set(seeds) for seeds in values.values()))
        if not shared:
            return None
        return max(values, key=lambda line: statistics.fmean(statistics.fmean(values[line][seed]) for seed in shared))


def acc_minus_asr(claim: Claim) -> float | None:
    """The paper's own rule for the best defence, in percent."""
    return None if claim.acc is None or claim.asr is None else claim.acc.percent - claim.asr.percent


def effectiveness(claim: Claim) -> float | None:
    """DER, which also asks what was lost."""
    return claim.der


def split_method(method: str) -> tuple[str, str, str]:
    """`nad@backdoorbench` -> ("nad", "backdoorbench", ""), `lpp:band=0` -> ("lpp", "", "band=0")."""
    name, _, settings = method.partition(":")
    name, _, preset = name.partition("@")
    return name, preset, settings


def has_settings(method: str) -> bool:
    """Whether a grid gave a method settings of its own: such cells are sweeps, by which nothing is chosen."""
    return ":" in method


def method_title(method: str) -> str:
    """`ibau` -> "I-BAU", `nad@backdoorbench` -> "NAD (backdoorbench)", `lpp:band=0` -> "LPP, band=0"."""
    name, preset, settings = split_method(method)
    title = "No defence" if name == NONE else METHODS.get(name, name.upper())
    return title + (f" ({preset})" if preset else "") + (f", {settings}" if settings else "")


@dataclass(frozen=True)
class Sheet:
    """A grid with its tables, made once for the page, the figures and the texts.

    Attributes:
        grid: the claims.
        tables: of methods as they come.
        variants: of methods that were also run with settings given, beside the methods themselves.
    """

    grid: ClaimedGrid
    tables: tuple[Table, ...]
    variants: tuple[Table, ...]

    @classmethod
    def of(cls, grid: ClaimedGrid) -> Sheet:
        """Both kinds of tables of a grid."""
        return cls(grid, tuple(tables(grid)), tuple(variants(grid)))

    @property
    def all_tables(self) -> tuple[Table, ...]:
        """Both kinds, in the order in which they are shown."""
        return (*self.tables, *self.variants)


def tables(grid: ClaimedGrid) -> list[Table]:
    """A grid's tables, of methods as they come: those with settings given are in `variants`."""
    found = _tables(grid, [c for c in grid.claims if not has_settings(c.method)])
    only_variants = any(has_settings(c.method) for c in grid.claims)
    return [t for t in found if not only_variants or any(line.method != NONE for line in t.lines)]


def variants(grid: ClaimedGrid) -> list[Table]:
    """Tables of every variant of the methods that were also run with settings given, beside the methods themselves."""
    given = {split_method(c.method)[0] for c in grid.claims if has_settings(c.method)}
    families = [c for c in grid.claims if c.method == NONE or split_method(c.method)[0] in given]
    return [table for table in _tables(grid, families) if any(has_settings(line.method) for line in table.lines)]


def _tables(grid: ClaimedGrid, claims: Iterable[Claim]) -> list[Table]:
    groups: dict[tuple[str, str, str], list[Claim]] = {}
    for claim in claims:
        if claim.kind != "correlation":
            groups.setdefault((claim.data, claim.arch, claim.recipe), []).append(claim)
    found = []
    for group in groups.values():
        rates: list[float | None] = [*sorted({c.rate for c in group if c.rate is not None}, reverse=True)]
        for rate in rates or [None]:
            found.append(_table(grid, rate, [c for c in group if c.rate is None or c.rate == rate]))
    return found


def _table(grid: ClaimedGrid, rate: float | None, claims: Sequence[Claim]) -> Table:
    some = claims[0]
    columns, lines = _columns(claims), _lines(claims)
    column_of = {(c.attack, c.target, c.epochs): c for c in columns}
    line_of = {(x.method, x.clean): x for x in lines}
    behind: dict[tuple[Line, Column], list[Claim]] = {}
    for claim in claims:
        place = line_of[claim.method, claim.clean], column_of[claim.attack, claim.target, claim.epochs]
        behind.setdefault(place, []).append(claim)
    entries = {place: _entry(grid, place, found) for place, found in behind.items()}
    titles = {name: some.names.get(name, getattr(some, name)) for name in ("data", "arch")}
    return Table(
        data=some.data,
        arch=some.arch,
        recipe=some.recipe,
        rate=rate,
        titles=titles,
        columns=columns,
        lines=lines,
        entries=entries,
    )


def _columns(claims: Sequence[Claim]) -> tuple[Column, ...]:
    found: dict[tuple[str, int, int], Column] = {}
    usual = statistics.mode(c.epochs for c in claims)
    for claim in claims:
        key = (claim.attack, claim.target, claim.epochs)
        name = "clean network" if claim.attack == NONE else claim.names.get("attack", claim.attack)
        more = [f"{claim.epochs} epochs"] if claim.epochs != usual else []
        more += [f"target {claim.target}"] if claim.target else []
        found.setdefault(key, Column(*key, f"{name} ({', '.join(more)})" if more else name))
    return tuple(sorted(found.values(), key=lambda c: c.clean))  # the clean network last


def _lines(claims: Sequence[Claim]) -> tuple[Line, ...]:
    shares: dict[str, set[float]] = {}
    for claim in claims:
        if claim.clean is not None:
            shares.setdefault(claim.method, set()).add(claim.clean)
    several = len(set().union(*shares.values())) > 1 if shares else False
    found: dict[tuple[str, float | None], Line] = {}
    for claim in claims:
        name = method_title(claim.method)
        title = f"{name}, {100 * claim.clean:g} %" if several and claim.clean is not None else name
        key = (claim.method, claim.clean)
        found.setdefault(key, Line(*key, title))
    order = list(METHODS)
    # The paper's order, ours last: data-based ones, then CLP, then LPP; what the paper has not stands between.
    place = {"none": -1, "clp": len(order) + 1, "lpp": len(order) + 2}

    def rank(line: Line) -> tuple[int, str, float]:
        name, _, settings = split_method(line.method)
        key, _, value = settings.partition("=")
        return place.get(name, order.index(name) if name in order else len(order)), key, _number(value)

    return tuple(sorted(found.values(), key=rank))


def _number(text: str) -> float:
    """So that a sweep stands in order; what is no number stands as it came."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def _entry(grid: ClaimedGrid, place: tuple[Line, Column], claims: Sequence[Claim]) -> Entry:
    line, column = place
    done = tuple(c for c in claims if c.failed is None)
    table = "T4" if column.clean else grid.paper
    first = claims[0]
    seconds = [c.seconds for c in done if c.seconds is not None]
    return Entry(
        acc=_percent(done, "acc"),
        asr=_percent(done, "asr"),
        ra=_percent(done, "ra"),
        acc_change=_mean(done, _acc_change),
        der=_mean(done, effectiveness),
        seconds=statistics.median(seconds) if seconds and line.method != NONE else None,
        claims=done,
        failed=tuple(c for c in claims if c.failed is not None),
        paper=printed(table, first.data, first.arch, column.attack, first.rate, line.method, line.clean)
        if table
        else None,
    )


def _percent(claims: Iterable[Claim], name: str) -> Mean | None:
    def rate(claim: Claim) -> float | None:
        count: Count | None = getattr(claim, name)
        return None if count is None else count.percent

    return _mean(claims, rate)


def _acc_change(claim: Claim) -> float | None:
    before = claim.before.get("acc")
    return None if before is None or claim.acc is None else claim.acc.percent - before.percent


def _mean(claims: Iterable[Claim], rule: Callable[[Claim], float | None]) -> Mean | None:
    """Over training seeds; draws of clean images of one seed are averaged first, as they share a network."""
    values: dict[int, list[float]] = {}
    for claim in claims:
        value = rule(claim)
        if value is not None:
            values.setdefault(claim.seed, []).append(value)
    if len(values) == 1:
        return Mean.of(next(iter(values.values())))
    return Mean.of([statistics.fmean(found) for found in values.values()])
