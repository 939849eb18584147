"""Claims side by side: a table for each data set, network, recipe and rate; a row a method, a column an attack."""

from __future__ import annotations

import functools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from unbackdoor.leaderboard.claims import NONE, Claim, ClaimedGrid
from unbackdoor.leaderboard.paper import METHODS, Printed, printed

#: Below this, in percent, an attack is not established, and says nothing about a defence.
ESTABLISHED = 80.0


@dataclass(frozen=True)
class Mean:
    """Of one value a seed.

    Attributes:
        value: the mean.
        half: half of its 95 % interval by Student's t; None for a single seed.
        values: what it is of, by seed.
    """

    value: float
    half: float | None
    values: tuple[float, ...]

    @property
    def seeds(self) -> int:
        """How many."""
        return len(self.values)

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean | None:
        """None of nothing."""
        if not values:
            return None
        n = len(values)
        half = None
        if n > 1:
            half = _student(n - 1) * statistics.stdev(values) / math.sqrt(n)
        return cls(statistics.fmean(values), half, tuple(values))


@functools.cache
def _student(freedom: int) -> float:
    """Student's t for a two-sided 95 % interval."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


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
    """A method, with its share of clean images and of triggered ones among them."""

    method: str
    clean: float | None
    poisoned: float | None
    title: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a method did to a column's networks.

    Attributes:
        acc, asr, ra, recall: in percent, over the seeds.
        acc_change, der: in points, and in [0, 1], each against the same network before.
        seconds: of the method alone.
        claims: behind it, finished ones.
        failed: those that failed.
        paper: what the paper prints there.
    """

    acc: Mean | None = None
    asr: Mean | None = None
    ra: Mean | None = None
    recall: Mean | None = None
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
        data, arch, recipe, dtype, rate: what is the same in all of it; `rate` is None where only clean networks are.
        swept: whether it is of methods in several settings, by which nothing is chosen: then none is the best.
        every_seed: whether only those methods are here that have a result on every seed, as others have not.
        titles: of data and arch, for readers.
        columns, lines: in the order of the paper, then of the claims.
        entries: by line and column; a cell that no claim is about is missing.
    """

    data: str
    arch: str
    recipe: str
    dtype: str
    rate: float | None
    swept: bool
    every_seed: bool = False
    titles: dict[str, str] = field(default_factory=dict)
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    entries: dict[tuple[Line, Column], Entry]

    @property
    def title(self) -> str:
        """For a reader."""
        rate = "" if self.rate is None else f", {100 * self.rate:g} % poisoned"
        dtype = "" if self.dtype == "bfloat16" else f", weights in {self.dtype}"
        some = " (methods run on every seed)" if self.every_seed else ""
        return f"{self.titles['data']}, {self.titles['arch']}{rate}, recipe {self.recipe}{dtype}{some}"

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
        """ACC, ASR and DER of a method over the established attacks, on the seeds that all methods share.

        None where one of them was not run.
        """
        return self._averages[line]

    @cached_property
    def _averages(self) -> dict[Line, tuple[float, float, float | None] | None]:
        return {line: self._average(line) for line in self.lines}

    def _average(self, line: Line) -> tuple[float, float, float | None] | None:
        found = [self._on_shared(line, column) for column in self.established]
        accs, asrs, ders = ([_mean(claims, rule) for claims in found] for rule in (_acc, _asr, _der))
        known = [(acc.value, asr.value) for acc, asr in zip(accs, asrs, strict=True) if acc and asr]
        if not found or len(known) < len(found):
            return None
        der = [mean.value for mean in ders if mean is not None]
        return (
            statistics.fmean(acc for acc, _ in known),
            statistics.fmean(asr for _, asr in known),
            statistics.fmean(der) if len(der) == len(found) else None,
        )

    def average_recall(self, line: Line) -> float | None:
        """The target's recall, as `average`; None where it is not known of every attack that has one."""
        with_target = [column for column in self.established if "mapping=all-to-all" not in column.attack]
        found = [_recall(self._on_shared(line, column)) for column in with_target]
        values = [mean.value for mean in found if mean is not None]
        return statistics.fmean(values) if values and len(values) == len(found) else None

    @property
    def has_recall(self) -> bool:
        """Whether the target's recall is known of any result."""
        return any(entry.recall is not None for entry in self.entries.values())

    def clean_cost(self, line: Line) -> float | None:
        """Points of accuracy that a method takes from clean networks, on the seeds that all methods share."""
        change = [_mean(self._on_shared(line, column), _acc_change) for column in self.columns if column.clean]
        return None if not change or change[0] is None else 0.0 - change[0].value

    @cached_property
    def shared(self) -> dict[Column, set[int]]:
        """Of each column, the seeds on which every defence with a result there has one."""
        found: dict[Column, set[int]] = {}
        for column in self.columns:
            seeds = {line: {c.seed for c in e.claims} for (line, at), e in self.entries.items() if at == column}
            defences = [has for line, has in seeds.items() if line.method != NONE and has]
            found[column] = set.intersection(*(defences or seeds.values() or [set()]))
        return found

    @property
    def seed_words(self) -> str:
        """The seeds that averages use; "" if there is none."""
        shared = [sorted(self.shared[column]) for column in self.established]
        if any(seeds != shared[0] for seeds in shared):
            least, most = min(map(len, shared)), max(map(len, shared))
            each = f"{least} to {most}" if least < most else str(most)
            return f"{each} seed{'' if each == '1' else 's'} per attack"
        return f"seed{'' if len(shared[0]) == 1 else 's'} {', '.join(map(str, shared[0])) or 'none'}" if shared else ""

    def on_every_seed(self) -> Table | None:
        """The part of the methods that have a result on every seed on which two or more have one.

        Against the established attacks; None unless those are more seeds than all methods share.
        """
        runs = {place: {claim.seed for claim in entry.claims} for place, entry in self.entries.items()}
        every: dict[Column, set[int]] = {}
        for column in self.established:
            ran = Counter(
                seed for (x, at), seeds in runs.items() if at == column and x.method != NONE for seed in seeds
            )
            every[column] = {seed for seed, methods in ran.items() if methods > 1}
        lines = [x for x in self.lines if x.method != NONE and all(runs.get((x, c), set()) >= every[c] for c in every)]
        if len(lines) < 2 or not any(self.shared[column] < every[column] for column in every):
            return None
        kept = tuple(line for line in self.lines if line.method == NONE or line in lines)
        entries = {place: entry for place, entry in self.entries.items() if place[0] in kept}
        columns = tuple(column for column in self.columns if any(at == column for _, at in entries))
        return replace(self, every_seed=True, lines=kept, columns=columns, entries=entries)

    @cached_property
    def retrained(self) -> tuple[Column, ...]:
        """Columns in which methods were given different trainings of one cell, as two machines may have made them."""
        found = []
        for column in self.columns:
            before: dict[int, set[tuple[int, int | None]]] = {}
            for claim in (c for (_, at), entry in self.entries.items() if at == column for c in entry.claims):
                rates = {"acc": claim.acc, "asr": claim.asr} if claim.method == NONE else claim.before
                acc, asr = rates.get("acc"), rates.get("asr")
                if acc is not None:
                    before.setdefault(claim.seed, set()).add((acc.hits, None if asr is None else asr.hits))
            found += [column] if any(len(rates) > 1 for rates in before.values()) else []
        return tuple(found)

    def _on_shared(self, line: Line, column: Column) -> list[Claim]:
        entry = self.entries.get((line, column))
        return [] if entry is None else [claim for claim in entry.claims if claim.seed in self.shared[column]]

    def seconds(self, method: str, line: Line | None = None) -> float | None:
        """Of a method: the median over the columns' medians, of one of its lines or of all."""
        found = [
            entry.seconds
            for (one, _), entry in self.entries.items()
            if one.method == method and line in (None, one) and entry.seconds is not None
        ]
        return statistics.median(found) if found else None

    @cached_property
    def winners(self) -> dict[Column, tuple[tuple[Line, ...], tuple[Line, ...]]]:
        """The best of each column by ACC - ASR and by DER."""
        return {c: (self.best(c, acc_minus_asr), self.best(c, effectiveness)) for c in self.columns}

    def best(self, column: Column, rule: Callable[[Claim], float | None]) -> tuple[Line, ...]:
        """The defences with the largest mean of a rule, in percent, over the seeds that all of them share.

        Those that agree in the two digits that are printed are equally good. Nothing without such seeds, and only where
        the attack is established: where it is not, doing nothing wins. Nothing among swept settings.
        """
        if self.swept or column not in self.established:
            return ()
        means = {x: _mean(self._on_shared(x, column), rule) for x in self.lines if x.method != NONE}
        known = {line: round(mean.value, 2) for line, mean in means.items() if mean is not None}
        most = max(known.values(), default=0.0)
        return tuple(line for line, value in known.items() if value == most) if len(known) > 1 else ()


def acc_minus_asr(claim: Claim) -> float | None:
    """The paper's own rule for the best defence, in percent."""
    return None if claim.acc is None or claim.asr is None else claim.acc.percent - claim.asr.percent


def effectiveness(claim: Claim) -> float | None:
    """DER, which also asks what was lost, in percent."""
    return None if claim.der is None else 100 * claim.der


def split_method(method: str) -> tuple[str, str, str]:
    """`nad@backdoorbench` -> ("nad", "backdoorbench", ""), `lpp:band=0` -> ("lpp", "", "band=0")."""
    name, _, settings = method.partition(":")
    name, _, preset = name.partition("@")
    return name, preset, settings


def has_settings(method: str) -> bool:
    """Whether a grid gave a method settings of its own."""
    return ":" in method


def swept_methods(grid: ClaimedGrid) -> set[str]:
    """Names of the methods to which a grid gives several values of one setting: sweeps, by which nothing is chosen."""
    values: dict[tuple[str, str], set[str]] = {}
    for method in {claim.method for claim in grid.own}:
        name, _, settings = split_method(method)
        for key, equals, value in (part.partition("=") for part in settings.split(",")):
            if equals:
                values.setdefault((name, key), set()).add(value)
    return {name for (name, _), found in values.items() if len(found) > 1}


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
        plain: of all methods, without the settings of swept ones; behind each the part of it whose methods have a
            result on every seed, where others have not.
        variants: of swept methods in all of their settings.
    """

    grid: ClaimedGrid
    plain: tuple[Table, ...]
    variants: tuple[Table, ...]

    @classmethod
    def of(cls, grid: ClaimedGrid) -> Sheet:
        """All kinds of tables of a grid."""
        pairs = [(table, table.on_every_seed()) for table in tables(grid)]
        return cls(grid, tuple(table for pair in pairs for table in pair if table is not None), tuple(variants(grid)))

    @property
    def tables(self) -> tuple[Table, ...]:
        """Of all methods."""
        return tuple(table for table in self.plain if not table.every_seed)

    @property
    def all_tables(self) -> tuple[Table, ...]:
        """All kinds, in the order in which they are shown."""
        return (*self.plain, *self.variants)

    @property
    def has_recall(self) -> bool:
        """Whether the target's recall is known of any result."""
        return any(table.has_recall for table in self.all_tables)


def tables(grid: ClaimedGrid) -> list[Table]:
    """A grid's tables, of all methods but the settings that were given to swept ones: those are in `variants`."""
    swept = swept_methods(grid)
    found = _tables(grid, [c for c in grid.own if not (has_settings(c.method) and split_method(c.method)[0] in swept)])
    return [t for t in found if not swept or any(line.method != NONE for line in t.lines)]


def variants(grid: ClaimedGrid) -> list[Table]:
    """Tables of swept methods in every setting, as they come and with presets too."""
    swept = swept_methods(grid)
    families = [c for c in grid.own if c.method == NONE or split_method(c.method)[0] in swept]
    return [table for table in _tables(grid, families, swept=True) if any(has_settings(x.method) for x in table.lines)]


def _tables(grid: ClaimedGrid, claims: Iterable[Claim], *, swept: bool = False) -> list[Table]:
    groups: dict[tuple[str, str, str, str], list[Claim]] = {}
    for claim in claims:
        if claim.kind != "correlation":
            groups.setdefault((claim.data, claim.arch, claim.recipe, claim.dtype), []).append(claim)
    found = []
    for group in groups.values():
        attacked = {(c.rate, c.method, c.clean) for c in group if c.rate is not None}
        rates: list[float | None] = [*sorted({rate for rate, _, _ in attacked}, reverse=True)]
        for rate in rates or [None]:
            elsewhere = {run[1:] for run in attacked} - {run[1:] for run in attacked if run[0] == rate}
            some = [c for c in group if c.rate == rate or (c.rate is None and (c.method, c.clean) not in elsewhere)]
            found.append(_table(grid, rate, some, swept=swept))
    return found


def _table(grid: ClaimedGrid, rate: float | None, claims: Sequence[Claim], *, swept: bool) -> Table:
    some = claims[0]
    columns, lines = _columns(claims), _lines(claims)
    column_of = {(c.attack, c.target, c.epochs): c for c in columns}
    line_of = {(x.method, x.clean, x.poisoned): x for x in lines}
    behind: dict[tuple[Line, Column], dict[tuple[int, int | None, bool], Claim]] = {}
    for claim in claims:
        line = line_of[claim.method, claim.clean, claim.poisoned]
        found = behind.setdefault((line, column_of[claim.attack, claim.target, claim.epochs]), {})
        # The same with its scores kept is no second measurement.
        found.setdefault((claim.seed, claim.clean_seed, claim.failed is None), claim)
    entries = {place: _entry(grid, place, list(found.values())) for place, found in behind.items()}
    titles = {name: some.names.get(name, getattr(some, name)) for name in ("data", "arch")}
    return Table(
        data=some.data,
        arch=some.arch,
        recipe=some.recipe,
        dtype=some.dtype,
        rate=rate,
        swept=swept,
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
    several, mixed = (
        len({share for c in claims if (share := getattr(c, name)) is not None}) > 1 for name in ("clean", "poisoned")
    )
    found: dict[tuple[str, float | None, float | None], Line] = {}
    for claim in claims:
        title = method_title(claim.method)
        title += f", {100 * claim.clean:g} %" if several and claim.clean is not None else ""
        title += f", {100 * claim.poisoned:g} % triggered" if mixed and claim.poisoned is not None else ""
        key = (claim.method, claim.clean, claim.poisoned)
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
    """So that a sweep stands in order; what is no number stands first."""
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
        acc=_mean(done, _acc),
        asr=_mean(done, _asr),
        ra=_mean(done, _ra),
        recall=_recall(done),
        acc_change=_mean(done, _acc_change),
        der=_mean(done, _der),
        seconds=statistics.median(seconds) if seconds and line.method != NONE else None,
        claims=done,
        failed=tuple(c for c in claims if c.failed is not None),
        paper=printed(table, first.data, first.arch, column.attack, first.rate, line.method, line.clean)
        if table
        else None,
    )


def _acc(claim: Claim) -> float | None:
    return None if claim.acc is None else claim.acc.percent


def _asr(claim: Claim) -> float | None:
    return None if claim.asr is None else claim.asr.percent


def _ra(claim: Claim) -> float | None:
    return None if claim.ra is None else claim.ra.percent


def _recall(claims: Sequence[Claim]) -> Mean | None:
    """None where one of them lacks it, as older ones do: it would be of other seeds than ACC beside it."""
    if any(claim.recall is None for claim in claims):
        return None
    return _mean(claims, lambda claim: None if claim.recall is None else claim.recall.percent)


def _der(claim: Claim) -> float | None:
    return claim.der


def _acc_change(claim: Claim) -> float | None:
    before = claim.before.get("acc")
    return None if before is None or claim.acc is None else claim.acc.percent - before.percent


def _mean(claims: Iterable[Claim], rule: Callable[[Claim], float | None]) -> Mean | None:
    """Over training seeds; draws of clean images of one seed are averaged first, as they share a network."""
    values: dict[int, list[float]] = {}
    for claim in sorted(claims, key=lambda c: (c.seed, c.clean_seed or 0)):
        value = rule(claim)
        if value is not None:
            values.setdefault(claim.seed, []).append(value)
    if len(values) == 1:
        return Mean.of(next(iter(values.values())))
    return Mean.of([statistics.fmean(found) for found in values.values()])
