"""The report as SARIF 2.1.0 (OASIS Standard, 2020), the exchange format of code scanners.

What could not be read appears twice: as a result, which viewers list, and as a notification of the tool, beside an
`executionSuccessful` that is false. A file that could not be read at all gets a run that holds nothing but that.

A model file has no lines, so a finding's place is its layer and channel (a logical location) in the file (an artifact).
Consumers that insist on a line get line 1, and tell findings apart by their fingerprints.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from importlib import metadata
from typing import Any
from urllib.parse import quote

from unbackdoor.findings import LayerReport, Remark, Report, Witness
from unbackdoor.report import summary
from unbackdoor.report.escape import short

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/schemas/sarif-schema-2.1.0.json"
NAME_LIMIT = 400
LISTED = 12
NO_FILE = "model"

RULES: tuple[tuple[str, str, str, str], ...] = (
    (
        "outlier-high",
        "warning",
        "A channel's score lies above its layer's upper threshold.",
        "Backdoors often sit in channels whose Lipschitz constant stands out in their layer. An outlier is a reason to "
        "look, not a proof: networks without a backdoor have outliers too.",
    ),
    (
        "outlier-low",
        "warning",
        "A channel's score lies below its layer's lower threshold.",
        "A channel that hardly reacts to its input also stands out in its layer. An outlier is a reason to look, not a "
        "proof: networks without a backdoor have outliers too.",
    ),
    (
        "near-outlier",
        "note",
        "A channel's score lies in the band below its layer's upper threshold.",
        "A repair does not prune a near outlier. It shrinks it.",
    ),
    (
        "not-finite",
        "error",
        "A channel has no finite score.",
        "Its weights or those of its norm contain NaN or infinity, or the norm's running variance is negative. A "
        "repair prunes the channel where it can.",
    ),
    (
        "not-covered",
        "warning",
        "A part of the model could not be read, or its role is not known.",
        "The report is incomplete. A backdoor in this part would not be found, and no repair changes it.",
    ),
    (
        "suspected-class",
        "error",
        "A class is easier to reach than the classes of honest networks are.",
        "Witnesses that need no data looked at the network, and this class stands out more than classes of honest "
        "networks do. It may be an attacker's target. This is a reason to look, not a proof.",
    ),
    (
        "closed-class",
        "note",
        "A class was closed though it is not suspected.",
        "No class stands out more than classes of honest networks do. Closing the one that stands out most cost "
        "little, so a repair closed it. Honest networks have such classes, too.",
    ),
)
NOTIFICATIONS: tuple[tuple[str, str], ...] = (
    ("not-read", "The file could not be read, so it was not scanned."),
    ("not-covered", "A part of the model could not be read, or its role is not known, or no layer was scored."),
    ("cannot-tell", "The witnesses could not look at the network, or cannot compare it."),
    ("unusual-cut", "More channels are outliers than in any network measured so far."),
)
_INDEX = {rule[0]: index for index, rule in enumerate(RULES)}


def render(report: Report) -> str:
    """SARIF of every outlier, near outlier, channel without a finite score and part that is not covered.

    Equal reports give equal bytes (of one version of the package), all of them ASCII.
    """
    uri = file_uri(report.source) if report.source else NO_FILE
    properties = {
        "summary": summary.not_covered(report) if report.not_covered else summary.headline(report),
        "complete": report.complete,
        "action": short(report.action, NAME_LIMIT),
        "architecture": short(report.arch, NAME_LIMIT) if report.arch else None,
        "method": short(report.method, NAME_LIMIT),
        "settings": {short(k, NAME_LIMIT): short(v, NAME_LIMIT) for k, v in summary.settings(report.settings).items()},
    }
    if report.damage is not None:
        properties["predicted_loss"] = {name: getattr(report.damage, name) for name in ("loss", "low", "high")}
    elif report.damage_unknown:
        properties["predicted_loss"] = f"not predicted: {short(report.damage_unknown, NAME_LIMIT)}"
    results = [_result(uri, *finding) for finding in _findings(report)]
    return _document(uri, list(_notifications(report)), results, properties, report.digest, success=report.complete)


def render_unread(source: str, reason: str, *, action: str = "scan") -> str:
    """SARIF of a file that could not be read at all.

    Args:
        source: the file.
        reason: the message of the error.
        action: what was to be done with it.
    """
    properties = {"summary": "The file could not be read.", "complete": False, "action": short(action, NAME_LIMIT)}
    notification = ("not-read", "error", short(reason, 4 * NAME_LIMIT))
    return _document(file_uri(source), [notification], [], properties, None, success=False)


def _document(
    uri: str,
    notifications: list[tuple[str, str, str]],
    results: list[dict[str, Any]],
    properties: dict[str, Any],
    digest: str | None,
    *,
    success: bool,
) -> str:
    artifact: dict[str, Any] = {"location": {"uri": uri}, "roles": ["analysisTarget"]}
    if digest:
        artifact["hashes"] = {"sha-256": short(digest, 128)}
    invocation: dict[str, Any] = {"executionSuccessful": success}
    if notifications:
        invocation["toolExecutionNotifications"] = [
            {
                "descriptor": {"id": name},
                "level": level,
                "message": {"text": text},
                "locations": [{"physicalLocation": {"artifactLocation": {"uri": uri, "index": 0}}}],
            }
            for name, level, text in notifications
        ]
    run = {
        "tool": {"driver": _driver()},
        "invocations": [invocation],
        "artifacts": [artifact],
        "results": results,
        "columnKind": "unicodeCodePoints",
        "properties": properties,
    }
    document = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(document, indent=1, allow_nan=False, ensure_ascii=True) + "\n"


def _notifications(report: Report) -> Iterator[tuple[str, str, str]]:
    """(descriptor, level, text) of what is not known, and of an unusual number of outliers."""
    for group in summary.group(report.not_covered):
        paths = ", ".join(short(path, NAME_LIMIT // 4) for path in group.paths[:LISTED])
        more = f" and {len(group.paths) - LISTED:,} more" if len(group.paths) > LISTED else ""
        kind = f"{short(group.kind, NAME_LIMIT)} " if group.kind else ""
        yield "not-covered", "warning", f"Not covered: {kind}{paths}{more}: {short(group.reason, NAME_LIMIT)}"
    if report.cannot_tell:
        yield "cannot-tell", "warning", f"The witnesses cannot tell: {short(report.cannot_tell, 4 * NAME_LIMIT)}"
    elif not report.not_covered and report.gap is not None:
        yield "not-covered", "warning", summary.headline(report)
    if report.unusual is not None:
        yield "unusual-cut", "warning", report.unusual


def file_uri(path: str) -> str:
    """The path as a URI: a relative path stays a relative reference, an absolute one becomes a file: URI.

    Each byte that is not allowed in a URI is percent-encoded, also those of names that are not valid UTF-8.
    """
    if re.match(r"[A-Za-z]:[\\/]", path):
        drive, rest = path[0], path[2:].replace("\\", "/")
        return f"file:///{drive}:{_quoted(rest)}"
    return ("file://" if path.startswith("/") else "") + _quoted(path)


def _quoted(path: str) -> str:
    try:
        raw = path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate that no file name decodes to
        raw = path.encode("utf-8", "surrogatepass")
    return quote(raw, safe="/")


def _driver() -> dict[str, Any]:
    driver: dict[str, Any] = {"name": "unbackdoor"}
    with contextlib.suppress(metadata.PackageNotFoundError):  # run from a source tree
        driver["version"] = metadata.version("unbackdoor")
    driver["rules"] = [
        {
            "id": name,
            "name": "".join(word.capitalize() for word in name.split("-")),
            "shortDescription": {"text": brief},
            "fullDescription": {"text": full},
            "help": {"text": full},
            "defaultConfiguration": {"level": level},
            "properties": {"precision": "low", "tags": ["security", "backdoor"]},
        }
        for name, level, brief, full in RULES
    ]
    driver["notifications"] = [{"id": name, "shortDescription": {"text": brief}} for name, brief in NOTIFICATIONS]
    return driver


Finding = tuple[str, str, str, str, dict[str, Any]]
"""Rule, place, kind of place, message, properties."""


def _findings(report: Report) -> Iterator[Finding]:
    for remark in report.not_covered:
        yield _uncovered(remark)
    if report.witness is not None:
        for label in report.suspects:
            yield _suspect(report.witness, label)
        if report.doubtful is not None:
            yield _doubtful(report.witness, report.doubtful)
    for layer in report.layers:
        factors = dict(zip(layer.scaled, layer.factors, strict=False))
        for channel in layer.not_finite:
            yield _channel("not-finite", layer, channel, "has no finite score", {})
        for channel in layer.pruned_high:
            yield _channel(
                "outlier-high", layer, channel, "is an outlier above the upper threshold", {"cut": layer.upper}
            )
        for channel in layer.pruned_low:
            yield _channel(
                "outlier-low", layer, channel, "is an outlier below the lower threshold", {"cut": layer.lower}
            )
        for channel in layer.immutable:
            score = layer.scores[channel]
            above = score is not None and layer.mean is not None and score > layer.mean
            rule = "not-finite" if score is None else "outlier-high" if above else "outlier-low"
            cut = {} if score is None else {"cut": layer.upper if above else layer.lower}
            yield _channel(rule, layer, channel, "is an outlier that cannot be pruned", cut)
        for channel in layer.scaled:
            more = {"cut": layer.band, "factor": factors.get(channel)}
            yield _channel("near-outlier", layer, channel, "is a near outlier", more)


def _channel(rule: str, layer: LayerReport, channel: int, what: str, more: dict[str, Any]) -> Finding:
    path = short(layer.path, NAME_LIMIT)
    score, z = layer.scores[channel], layer.z(channel)
    message = f"Channel {channel} of {path} {what}"
    if score is not None:
        message += f": score {summary.number(score)}"
    if z is not None:
        message += f", {summary.signed(z)} standard deviations from the layer's mean"
    properties = {"layer": path, "channel": channel, "score": score, "z": z} | more
    return rule, f"{path}[{channel}]", "channel", f"{message}.", properties


def _suspect(found: Witness, label: int) -> Finding:
    one = found.classes[label]
    message = (
        f"Class {label} is suspected: it stands out more than classes of honest networks do (z "
        f"{summary.signed(one.z)}, by {one.witness}). This is a reason to look, not a proof."
    )
    return "suspected-class", f"class {label}", "class", message, _witnessed(found, label)


def _doubtful(found: Witness, label: int) -> Finding:
    one = found.classes[label]
    message = (
        f"Class {label} is not suspected. It stands out most (z {summary.signed(one.z)}, by {one.witness}), and was "
        "closed, since that cost little."
    )
    return "closed-class", f"class {label}", "class", message, _witnessed(found, label)


def _witnessed(found: Witness, label: int) -> dict[str, Any]:
    one = found.classes[label]
    return {"class": label, "z": one.z, "witness": one.witness, "p": found.p, "networks": found.honest}


def _uncovered(remark: Remark) -> Finding:
    path, kind = short(remark.path, NAME_LIMIT), short(remark.kind, NAME_LIMIT)
    reason = short(remark.reason, 4 * NAME_LIMIT)
    properties = {"layer": path, "kind": kind, "reason": reason}
    return "not-covered", path, "layer", f"{path} ({kind}) is not covered: {reason}", properties


def _result(uri: str, rule: str, place: str, kind: str, message: str, properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "ruleId": rule,
        "ruleIndex": _INDEX[rule],
        "level": RULES[_INDEX[rule]][1],
        "message": {"text": message},
        "locations": [
            {
                "physicalLocation": {"artifactLocation": {"uri": uri, "index": 0}, "region": {"startLine": 1}},
                "logicalLocations": [{"fullyQualifiedName": place, "kind": kind}],
            }
        ],
        "partialFingerprints": {
            "primaryLocationLineHash": hashlib.sha256(f"{rule}\n{place}".encode()).hexdigest()[:16] + ":1"
        },
        "properties": properties,
    }
