"""Find a network's tensors in a file by their names and shapes, all of which must match.

A file may hold more than the network (an average's counter, a loss with weights, another network), put a prefix before
its names, spell them differently, leave out tied tensors, or store a weight in parts. Other tensors are listed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from unbackdoor.checkpoint.checkpoint import Checkpoint, Contents, Place, Stored, view
from unbackdoor.checkpoint.folds import FOLDS
from unbackdoor.checkpoint.places import check_tensors, choose, resolve
from unbackdoor.checkpoint.spelling import spell, spell_parametrizations
from unbackdoor.errors import CheckpointError

#: Buffers that older files lack and nothing here reads.
_COUNTER = "num_batches_tracked"

#: How many prefixes are tried: an untrusted file must not take long.
_MOST_PREFIXES = 8


@dataclass(frozen=True)
class _View:
    """A network's tensors as one prefix of one state dict has them.

    Attributes:
        checkpoint: the tensors that were found.
        key: `--key`'s name for them.
        faults: how many tensors are missing, left over, or of another shape.
        found: how many tensors were found.
    """

    checkpoint: Checkpoint
    key: str
    faults: int
    found: int


def fit(contents: Contents, wanted: Mapping[str, Tensor], key: str | None = None) -> Checkpoint:
    """A network's tensors in a file; if none match completely, the nearest match.

    Args:
        contents: the file.
        wanted: the network's tensors, by name; the same tensor under two names is tied.
        key: which part of the file to use, if there are several.

    Raises:
        CheckpointError: there is no such part, or several match the network completely.
    """
    if key is None:
        sought = [(shown, place, "") for shown, place in contents.places.items()]
    else:
        sought = [resolve(contents, key)]
    views = [one for part in sought for one in _views(contents, *part, wanted)]
    whole = [one for one in views if not one.faults]
    if len(whole) > 1:
        raise CheckpointError(
            f"{contents.path}: holds this network several times: {', '.join(repr(one.key) for one in whole)}; choose "
            "one with --key; the others are kept unchanged"
        )
    if whole:
        return whole[0].checkpoint
    if len(sought) > 1 or not any(one.found for one in views):
        return choose(contents, key)
    return max(views, key=lambda one: one.found - one.faults).checkpoint


def folded(found: Checkpoint) -> Checkpoint:
    """The same file, with each weight that is stored in parts joined to one tensor."""
    composites = _composites(spell_parametrizations(found.tensors), found.tensors)
    whole_of = {part: whole for whole, stored in composites.items() for part in stored.names}
    tensors: dict[str, Tensor] = {}
    held: dict[str, Stored] = {}
    for name, tensor in found.tensors.items():
        whole = whole_of.get(name)
        if whole is None:
            tensors[name] = tensor
        elif whole not in tensors:
            stored = composites[whole]
            tensors[whole] = stored.read(found.tensors)
            held[whole] = Stored(tuple(found.prefix + part for part in stored.names), stored.fold)
    return dataclasses.replace(found, tensors=tensors, stored=held)


def _views(contents: Contents, key: str, place: Place, within: str, wanted: Mapping[str, Tensor]) -> Iterator[_View]:
    """A network's tensors under each prefix in a state dict, by the names as they are and by common spelling."""
    state = check_tensors(contents, place)
    spellings = [(dict(zip(state, state, strict=True)), dict(zip(wanted, wanted, strict=True)))]
    if (ours := spell(state)) and (theirs := spell(wanted)):
        spellings.append((ours, theirs))
    whole: set[str] = set()
    for ours, theirs in spellings:
        plain = {spelling: Stored((name,)) for name, spelling in ours.items()}
        available = {**_composites(ours, state), **plain}
        for prefix in _prefixes(available, theirs.values(), within):
            if prefix not in whole:
                one = _view(contents, key, place, wanted, theirs, available, plain, prefix)
                yield one
                if not one.faults:
                    whole.add(prefix)


def _view(
    contents: Contents,
    key: str,
    place: Place,
    wanted: Mapping[str, Tensor],
    spelled: Mapping[str, str],
    available: Mapping[str, Stored],
    plain: Mapping[str, Stored],
    prefix: str,
) -> _View:
    state = contents.at(place)
    held = {name: available[prefix + s] for name, s in spelled.items() if prefix + s in available}
    order = {name: number for number, name in enumerate(state)}
    held = dict(sorted(held.items(), key=lambda item: order[item[1].names[0]]))
    tensors = {name: stored.read(state) for name, stored in held.items()}
    for name in [name for name in wanted if name not in tensors]:
        twin = next((other for other in tensors if wanted[other] is wanted[name]), None)
        if twin is not None:
            held[name], tensors[name] = Stored(()), tensors[twin]
    missing = [name for name in wanted if name not in tensors and not name.endswith(_COUNTER)]
    wrong = [name for name, tensor in tensors.items() if tensor.shape != wanted[name].shape]
    used = {part for stored in held.values() for part in stored.names}
    extra = {
        spelling.removeprefix(prefix): state[stored.names[0]]
        for spelling, stored in plain.items()
        if spelling.startswith(prefix) and stored.names[0] not in used
    }
    shown = ".".join(part for part in (key, prefix.removesuffix(".")) if part)
    faults = len(missing) + len(wrong) + len(extra)
    if faults:  # only used to describe the mismatch
        return _View(view(contents, key, place, {**extra, **tensors}, prefix=prefix), shown, faults, len(tensors))
    held = {name: stored for name, stored in held.items() if stored != Stored((prefix + name,))}
    return _View(view(contents, key, place, tensors, prefix=prefix, stored=held), shown, 0, len(tensors))


def _prefixes(available: Iterable[str], spellings: Iterable[str], within: str) -> list[str]:
    """Possible prefixes of the network's names, the likeliest first: those found before its longest names."""
    names, wanted = set(available), list(spellings)
    anchors = sorted(wanted, key=lambda name: (-len(name), name))[:3]
    found = {
        name.removesuffix(anchor)
        for anchor in anchors
        for name in names
        if name.endswith(anchor) and name.startswith(within)
    }
    kept = [prefix for prefix in found if prefix.startswith(within) and (not prefix or prefix.endswith("."))]
    return sorted(kept, key=lambda prefix: (-sum(prefix + name in names for name in wanted), prefix))[:_MOST_PREFIXES]


def _composites(spelled: Mapping[str, str], state: Mapping[str, Tensor]) -> dict[str, Stored]:
    """Weights that are stored in parts, by the name of the joined weight."""
    names = {spelling: name for name, spelling in spelled.items()}
    result: dict[str, Stored] = {}
    for spelling in names:
        for kind, fold in FOLDS.items():
            match = fold.first.fullmatch(spelling)
            if match is None:
                continue
            stem = spelling[: match.start(match.lastindex or 0)]
            parts = [names.get(part) for part in (spelling, *(stem + end for end in fold.rest))]
            there = tuple(part for part in parts if part is not None)
            whole = match.expand(fold.whole)
            if len(there) < len(parts) or whole in names or any(state[part].is_quantized for part in there):
                continue
            if fold.fits(tuple(state[part] for part in there)):
                result[whole] = Stored(there, kind)
    return result
