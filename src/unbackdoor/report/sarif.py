"""The report as SARIF 2.1.0 (OASIS Standard, 2020), the exchange format of code scanners.

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

from unbackdoor.report import summary
from unbackdoor.report.escape import short
from unbackdoor.report.record import LayerReport, Remark, Report

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/schemas/sarif-schema-2.1.0.json"
NAME_LIMIT = 400
NO_FILE = "model"

RULES: tuple[tuple[str, str, str, str], ...] = (
    (
        "outlier-high",
        "warning",
        "A channel's score lies above its layer's upper cut.",
        "Backdoors often sit in channels whose Lipschitz constant stands out in their layer. An outlier is a reason to "
        "look, not a proof: networks without a backdoor have outliers too.",
    ),
    (
        "outlier-low",
        "warning",
        "A channel's score lies below its layer's lower cut.",
        "A channel that hardly reacts to its input stands out in its layer as well. An outlier is a reason to look, "
        "not a proof.",
    ),
    (
        "near-outlier",
        "note",
        "A channel's score lies in the band below its layer's upper cut.",
        "A repair does not prune such a channel but scales its score to the layer's mean.",
    ),
    (
        "not-finite",
        "error",
        "A channel has no finite score.",
        "Its weights, or those of the norm behind it, hold NaN or infinity, or a running variance that is negative.",
    ),
    (
        "not-covered",
        "warning",
        "A part of the model could not be read or paired, so nothing is known of it.",
        "The report is incomplete: that no outlier was found there says nothing.",
    ),
)
_INDEX = {rule[0]: index for index, rule in enumerate(RULES)}


def render(report: Report) -> str:
    """SARIF of every outlier, near outlier, channel without a finite score and part that is not covered.

    Equal reports give equal bytes (of one version of the package), all of them ASCII.
    """
    uri = file_uri(report.source) if report.source else NO_FILE
    artifact: dict[str, Any] = {"location": {"uri": uri}, "roles": ["analysisTarget"]}
    if report.digest:
        artifact["hashes"] = {"sha-256": short(report.digest, 128)}
    run = {
        "tool": {"driver": _driver()},
        "invocations": [{"executionSuccessful": True}],
        "artifacts": [artifact],
        "results": [_result(uri, *finding) for finding in _findings(report)],
        "columnKind": "unicodeCodePoints",
        "properties": {
            "summary": summary.headline(report) if report.complete else summary.not_covered(report),
            "complete": report.complete,
            "action": short(report.action, NAME_LIMIT),
            "architecture": short(report.arch, NAME_LIMIT) if report.arch else None,
            "method": short(report.method, NAME_LIMIT),
            "settings": {
                short(k, NAME_LIMIT): short(v, NAME_LIMIT) for k, v in summary.settings(report.settings).items()
            },
        },
    }
    document = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(document, indent=1, allow_nan=False, ensure_ascii=True) + "\n"


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
    return driver


Finding = tuple[str, str, str, str, dict[str, Any]]
"""Rule, place, kind of place, message, properties."""


def _findings(report: Report) -> Iterator[Finding]:
    for remark in report.not_covered:
        yield _uncovered(remark)
    for layer in report.layers:
        factors = dict(zip(layer.scaled, layer.factors, strict=False))
        for channel in layer.not_finite:
            yield _channel("not-finite", layer, channel, "has no finite score", {})
        for channel in layer.pruned_high:
            yield _channel("outlier-high", layer, channel, "is an outlier above the upper cut", {"cut": layer.upper})
        for channel in layer.pruned_low:
            yield _channel("outlier-low", layer, channel, "is an outlier below the lower cut", {"cut": layer.lower})
        for channel in layer.immutable:
            score = layer.scores[channel]
            above = score is not None and layer.mean is not None and score > layer.mean
            rule = "not-finite" if score is None else "outlier-high" if above else "outlier-low"
            cut = {} if score is None else {"cut": layer.upper if above else layer.lower}
            yield _channel(rule, layer, channel, "is an outlier that cannot be cut", cut)
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
