"""What a layer's channels are to the network: hidden ones that can be switched off, its answers, or gates.

Answers: every value that the network puts out is followed back, through whatever computes without weights and through
norms, to the layers that it comes from. Gates: every layer's result is followed on, as a zero, until other layers read
it. A zero that stays zero, or to which a constant is added before it is read with weights, is switched off. A zero of
which something else is made (sigmoid, a constant added) and that then multiplies other values is a gate that opens by
half; if it is read with weights instead, the channel is not off but stuck.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from unbackdoor.dataflow.effects import AT_ZERO, FLATTENS, NORMALISES, ROW_BY_ROW, Role, canonical
from unbackdoor.dataflow.ops import Kind, Op
from unbackdoor.findings.layers import Layer, Part

_UNREAD = "no reader of its result was found, so its result may be an answer of the network"
_BLIND = "no output of the network could be traced back to a layer, so the layers that make its answers are not known"


#: Ops without weights.
_FUNCTIONS: tuple[Kind, ...] = ("alias", "other", "shape")
#: Of several verdicts on a layer, the first of these stands.
_GRAVITY: tuple[Part, ...] = ("gate", "unknown", "coupled", "constant")

#: What has become of a zero on its way:
#: - "zero": nothing;
#: - "summed": it is missing from a sum with other values, whose zero it no longer decides;
#: - "shifted": a number was added;
#: - "open": it is another value, by a norm or a bias of the network's;
#: - "constant": it is the value at zero of a function that is not linear.
State = Literal["zero", "summed", "shifted", "open", "constant"]
#: What these roles make of it; where nothing is said, it stays as it is.
_NEXT: dict[Role, dict[State, State]] = {
    "zero": {},
    "bend": {"shifted": "constant"},
    "joined": {"zero": "summed", "shifted": "open"},
    "shift": {"zero": "shifted", "summed": "open"},
    "open": {"zero": "open", "summed": "open", "shifted": "open"},
    "constant": {"zero": "constant", "shifted": "constant", "open": "constant", "summed": "open"},
}
_STATES: tuple[State, ...] = ("zero", "summed", "shifted", "open", "constant")


@dataclass(frozen=True)
class Verdict:
    """What a layer's or a norm's channels are, and for a reader how that was found."""

    part: Part
    why: str = ""


@dataclass(frozen=True)
class _Line:
    """How a value was computed, op by op, from one that it depends on alone.

    Attributes:
        zero: whether a zero stays one.
        point: whether every place was computed by itself.
        mixed: whether it was computed along the channels; None if that is not known.
        pole: whether something was divided by it.
    """

    zero: bool = True
    point: bool = True
    mixed: bool | None = False
    pole: bool = False


class Parts:
    """The parts of all layers and norms of a dataflow.

    Args:
        ops: the calls.
        pairs: layer -> the norm that alone reads it.
        layers: all that can be read.
        doubts: layers that run inside something that cannot be looked into, and what it is.
    """

    def __init__(
        self, ops: Sequence[Op], pairs: Mapping[str, str], *, layers: Mapping[str, Layer], doubts: Mapping[str, str]
    ) -> None:
        self._ops = ops
        self._pairs = pairs
        self._layers = layers
        self._doubts = doubts
        self._roles: list[tuple[tuple[int, Role], ...]] = []
        #: of an op's result: layers and inputs it is computed from past no layer
        self._sources: list[frozenset[str]] = []
        for number, op in enumerate(self._ops):
            made = (
                [self._sources[i] for i in op.inputs] if op.kind not in ("layer", "weights", "opaque", "input") else []
            )
            own = frozenset[str]().union(*made) if made else frozenset([op.path or f"#{number}"])
            self._sources.append(own if op.kind != "shape" else frozenset())
            self._roles.append(self._own_roles(number))
        self._consumers: list[list[tuple[int, Role]]] = [[] for _ in self._ops]
        for number, roles in enumerate(self._roles):
            for source, role in roles:
                self._consumers[source].append((number, role))
        #: of a zero that is this op's result, or of what has become of one
        self._verdicts: dict[State, list[Verdict | None]] = {state: [None] * len(self._ops) for state in _STATES}
        self._readers: list[frozenset[str]] = [frozenset()] * len(self._ops)  # layers behind an op; two are enough
        for number in reversed(range(len(self._ops))):
            self._sweep(number)
        self._calls: dict[str, list[int]] = {}
        self._reading: list[list[int]] = [[] for _ in self._ops]  # all ops that are given an op's result
        for number, op in enumerate(self._ops):
            if op.kind in ("layer", "norm"):
                self._calls.setdefault(op.path, []).append(number)
            for source in op.inputs:
                self._reading[source].append(number)
        self._answers, self._doubted, self.known = self._follow_back()

    @property
    def doubted(self) -> bool:
        """Whether it is not known of some layer whether its rows are answers."""
        return bool(self._doubted) or not self.known

    def of_layer(self, path: str) -> Verdict:
        """A layer's part."""
        norm = self._pairs.get(path)
        calls = self._calls[path]
        if path in self._answers or norm in self._answers:
            others = frozenset[str]().union(*(self._readers[call] for call in calls)) - {path}
            if norm is None or not others:
                return Verdict("answer")
        if path in self._doubts:
            return Verdict("unknown", self._doubts[path])
        if norm is None and path in self._doubted:
            return Verdict("unknown", self._doubted[path])
        last = calls if norm is None else self._calls[norm]
        if not any(self._consumers[call] for call in last):
            return Verdict("unknown", _UNREAD)
        found = self._worst(last)
        if found is None and norm is None and not self.known:
            return Verdict("unknown", _BLIND)
        return found or Verdict("hidden")

    def is_put_out(self, layer: Layer) -> bool:
        """Whether a hidden layer's result is also one of the network's: features beside the logits made of them."""
        return layer.part == "hidden" and not self._answers.isdisjoint((layer.path, layer.norm))

    def of_norm(self, path: str) -> Verdict:
        """The part of a norm that belongs to no single layer: of one that is paired, ask the layer."""
        calls = self._calls[path]
        if path in self._answers and not any(self._readers[call] for call in calls):
            return Verdict("answer")
        return self._worst(calls) or Verdict("hidden")

    def norm_behind(self, path: str) -> str | None:
        """The norm that alone reads what functions of a layer's or norm's result make of it, each channel by itself; or
        None. It may work along another axis.
        """
        calls = self._calls[path]
        ends = {end for end in self._made_of(calls, past=_FUNCTIONS) if self._ops[end].kind not in _FUNCTIONS}
        norm = min((self._ops[end].path for end in ends if self._ops[end].kind == "norm"), default=None)
        if norm is None or ends != set(self._calls[norm]):
            return None
        lines = [self._line(self._ops[end].inputs[0]) for end in ends]
        alone = all(any(call in line and line[call].mixed is False for call in calls) for line in lines)
        return norm if alone else None

    def no_classes(self, path: str) -> str | None:
        """Why the rows of the one answer layer are not known to be read as one number a class, if so.

        Rows of an embedding are compared, not read; those of a map are read at every place.
        """
        made = self._made_of(self._calls[path]) | {*self._calls[path]}
        stack = [(call, not self._layers[path].kind.lower().startswith("conv")) for call in self._calls[path]]
        seen = set(stack)
        while stack:
            source, flat = stack.pop()
            for number in self._reading[source]:
                op = self._ops[number]
                name = canonical(op.effect.name)
                if op.kind == "output" and not flat:
                    return "its output is a map, not one number per class"
                if op.kind == "other":
                    values = {i for i in op.inputs if self._ops[i].kind != "shape"}
                    joined = name in ("add", "cat", "concat", "stack") and values <= made  # of several crops, say
                    if name not in ROW_BY_ROW or (len(values) > 1 and not joined):
                        return f"{op.effect.name} reads its result, so the output is not one number per class"
                elif op.kind not in ("alias", "shape", "output"):
                    return f"{op.path or op.kind} reads its result, so the output is not one number per class"
                step = (number, flat or name in FLATTENS)
                if op.kind != "shape" and step not in seen:
                    seen.add(step)
                    stack.append(step)
        return None

    def _made_of(self, calls: Iterable[int], *, past: Collection[Kind] | None = None) -> set[int]:
        """Every op that is computed from the results of some calls; with `past`, up to the first ops of other kinds."""
        found: set[int] = set()
        stack = list(calls)
        while stack:
            for number in self._reading[stack.pop()]:
                if number not in found:
                    found.add(number)
                    if past is None or self._ops[number].kind in past:
                        stack.append(number)
        return found

    def _worst(self, calls: Iterable[int]) -> Verdict | None:
        found: Verdict | None = None
        for call in calls:
            found = _worse(found, self._verdicts["zero"][call])
        return found

    def _own_roles(self, number: int) -> tuple[tuple[int, Role], ...]:
        op = self._ops[number]
        if op.kind == "alias":
            return ((op.inputs[0], "zero"),)
        if op.kind in ("norm", "own_norm"):
            return tuple((i, "open") for i in op.inputs)
        if op.kind == "input_norm":
            return tuple((i, "coupled") for i in op.inputs)
        if op.kind == "opaque":
            return tuple((i, "unknown") for i in op.inputs)
        if op.kind in ("layer", "weights"):
            return tuple((i, "ends") for i in op.inputs)
        if op.kind != "other":
            return ()
        return self._of_itself(op.effect.roles) if op.effect.layout == "point" else op.effect.roles

    def _of_itself(self, roles: tuple[tuple[int, Role], ...]) -> tuple[tuple[int, Role], ...]:
        """x * sigmoid(x), torch.where(x > 0, x, x / 2): a function of one value, whose zero stays zero.

        If one of its arguments is computed along the channels, as in x / x.norm(dim=1), they are coupled.
        """
        kinds = {role for _, role in roles}
        added = kinds == {"joined"}
        if not 2 <= len(roles) <= 3 or not (added or kinds & {"factor", "gate", "pole"}):
            return roles
        lines = [self._line(source) for source, _ in roles]
        for value in lines[0]:
            if not all(value in line for line in lines):
                continue
            ways = [line[value] for line in lines]
            alone = [way for way in ways if way.mixed is False]
            if alone and (any(way.mixed for way in ways) or (not added and len(alone) < len(ways))):
                return ((value, "coupled"),)
            if added:
                break
            zeros = [way.zero and way.point for way in ways]
            kept = [zero for zero, (_, role) in zip(zeros, roles, strict=True) if role == "factor"]
            gated = "gate" in kinds  # of torch.where every branch must stay zero
            firm = all(role in ("factor", "gate") or (role == "pole" and self._firm(n)) for n, role in roles)
            if kept and (all(kept) if gated else any(kept)) and firm and not any(way.pole for way in ways):
                return ((value, "bend"),)
        if added and len(frozenset[str]().union(*(self._sources[n] for n, _ in roles))) < 2:
            return tuple((n, "zero") for n, _ in roles)  # all of one layer: none is left where one is zero
        return roles

    def _firm(self, number: int) -> bool:
        """Whether a value is clamped away from zero, as a length is that something is divided by."""
        op, roles = self._ops[number], self._roles[number]
        if op.kind == "other" and canonical(op.effect.name) in ("expand", "expandas") and len(roles) == 1:
            return self._firm(roles[0][0])
        clamped = op.kind == "other" and canonical(op.effect.name) in ("clampmin", "clamp", "clip")
        return clamped and [role for _, role in roles] in (["open"], ["constant"])

    def _line(self, number: int) -> dict[int, _Line]:
        """The values that a value is a function of, each alone, back to where two meet or weights are applied."""
        line = _Line()
        found = {number: line}
        while True:
            op, roles = self._ops[number], self._roles[number]
            if op.kind not in ("alias", "norm", "own_norm", "input_norm", "other") or len(roles) != 1:
                return found
            ((number, role),) = roles
            other = op.kind == "other"
            if role not in (*_NEXT, "coupled", "pole") or (other and op.effect.layout == "moved"):
                return found
            pooled = other and op.effect.layout == "pool"
            line = _Line(
                zero=line.zero and role in ("zero", "bend", "joined"),
                point=line.point and not pooled and op.kind not in ("own_norm", "input_norm"),
                mixed=_either(line.mixed, op.effect.mixes) if pooled else line.mixed,
                pole=line.pole or role == "pole",
            )
            found[number] = line

    def _sweep(self, number: int) -> None:
        """What becomes of a zero, and of what was made of one, at everything that reads an op's result."""
        readers: set[str] = set()
        for consumer, role in self._consumers[number]:
            readers |= {self._name(consumer)} if role == "ends" else self._readers[consumer]
            for state in _STATES:
                verdicts = self._verdicts[state]
                verdicts[number] = _worse(verdicts[number], self._through(consumer, role, state))
        self._readers[number] = frozenset(sorted(readers)[:2])

    def _name(self, number: int) -> str:
        op = self._ops[number]
        return op.path or op.effect.name or f"#{number}"

    def _through(self, consumer: int, role: Role, state: State) -> Verdict | None:
        """What follows from handing a zero, or what has become of one, to an op that reads it in some role."""
        op = self._ops[consumer]
        name = op.effect.name or op.path or op.kind
        if role in _NEXT:
            return self._made(consumer, state, _NEXT[role].get(state, state))
        if role == "ends":
            return Verdict("constant", f"{self._name(consumer)} reads that") if state == "constant" else None
        if role == "coupled":
            if op.kind == "input_norm" or canonical(name) in NORMALISES:
                return Verdict(
                    "coupled", f"{name} normalises it by its current statistics, so zero does not switch a channel off"
                )
            return Verdict("coupled", f"{name} mixes it with the channels beside it, so zero moves those")
        if role in ("factor", "sum"):
            if state in ("zero", "summed"):
                return self._verdicts[state][consumer] if role == "factor" else None
            return Verdict("gate", f"{name} multiplies other values by it")
        if role == "gate":
            return Verdict("gate", f"{name} uses it to select other values")
        if role == "pole":
            return Verdict("gate", f"{name} divides by it or takes its logarithm, so it must not be zero")
        return Verdict("unknown", f"{name} reads it, and its effect on zero is not known")

    def _made(self, consumer: int, before: State, after: State) -> Verdict | None:
        """What follows once an op has made something else of a zero, said from there on."""
        found = self._verdicts[after][consumer]
        if found is None or before == after or after == "summed":
            return found
        op = self._ops[consumer]
        name = f"the norm {op.path}" if op.kind == "norm" else op.effect.name or op.path or op.kind
        if after == "constant" and found.part == "constant":
            at_zero = AT_ZERO.get(canonical(name)) if before == "zero" else None
            made = f"{name}(0) = {at_zero}" if at_zero else f"{name} makes a constant of it"
        elif before in ("zero", "summed"):
            made = f"{name} does not map zero to zero"
        else:
            return found
        return Verdict(found.part, f"{made}, and then {found.why}")

    def _follow_back(self) -> tuple[set[str], dict[str, str], bool]:
        """The layers and norms that put out what the network puts out; those of which that is not known, and why; and
        whether anything was found at all.
        """
        answers: set[str] = set()
        doubted: dict[str, str] = {}
        stack = [(i, "") for op in self._ops if op.kind == "output" for i in op.inputs]
        ended = not stack or not self._layers
        seen: set[tuple[int, str]] = set()
        while stack:
            number, behind = stack.pop()
            if (number, behind) in seen:
                continue
            seen.add((number, behind))
            op = self._ops[number]
            if op.kind in ("layer", "norm"):
                if behind:
                    why = f"{behind} comes after it and cannot be read, so it may make the network's answers"
                    doubted.setdefault(op.path, why)
                else:
                    answers.add(op.path)
            ended |= op.kind in ("layer", "weights")
            if op.kind == "opaque":
                behind = behind or op.path
            if op.kind not in ("layer", "weights", "shape", "input"):
                stack.extend((i, behind) for i in op.inputs)
        return answers, doubted, ended


def _either(*known: bool | None) -> bool | None:
    """Whether one of several is so; None if that is not known."""
    return True if any(known) else None if None in known else False


def _worse(a: Verdict | None, b: Verdict | None) -> Verdict | None:
    """Of two, the one that is known; a gate before what is unknown, and that before what is coupled."""
    if a is None or (b is not None and _GRAVITY.index(b.part) < _GRAVITY.index(a.part)):
        return b
    return a
