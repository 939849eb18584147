"""Grids of claims that were made up, for tests of what is shown of them."""

import hashlib
import random

from unbackdoor.leaderboard import Claim, ClaimedGrid, Count

METHODS = (("none", None), ("bnp", 0.01), ("ibau", 0.01), ("nad", 0.01), ("clp", None), ("lpp", None))


def claim(**values):
    """One claim: LPP on a BadNets network, unless said otherwise; acc and asr in percent of 10,000 and 9,000."""
    acc, asr = values.pop("acc", 90.0), values.pop("asr", 5.0)
    before = values.pop("before", None)
    attack = values.get("attack", "badnet")
    usual = {
        "kind": "repair",
        "data": "cifar10",
        "arch": "resnet18:width=16",
        "attack": attack,
        "rate": None if attack == "none" else 0.1,
        "recipe": "fast",
        "epochs": 15,
        "seed": 0,
        "method": "lpp",
        "names": {"data": "CIFAR-10", "arch": "ResNet-18 (width=16)", "attack": attack},
    }
    rates = {} if acc is None else {"acc": Count(hits=round(100 * acc), total=10_000)}
    if asr is not None and attack != "none" and acc is not None:
        rates["asr"] = Count(hits=round(90 * asr), total=9_000)
    if before is not None:
        rates["before"] = {"acc": Count(hits=round(100 * before), total=10_000)}
    made = {**usual, **rates, **values}
    made.setdefault("key", hashlib.sha256(str(sorted(made.items(), key=str)).encode()).hexdigest()[:32])
    return Claim(**made)


def grid(*claims, **values):
    """A grid of these claims."""
    usual = {"name": "sample", "title": "A sample", "paper": "T1", "cells": len(claims)}
    return ClaimedGrid(**{**usual, **values}, claims=claims)


def large(seed=0):
    """A grid with all that a page can show: several seeds, a failure, sweeps, correlations, scores, a weak attack."""
    draw = random.Random(seed)
    found = []
    for attack in ("badnet", "bpp", "wanet", "none"):
        for number in range(3):
            base, asr = draw.uniform(83, 88), 52.0 if attack == "wanet" else draw.uniform(92, 100)
            for method, clean in METHODS:
                if method not in ("none", "clp", "lpp") and number:
                    continue
                lost, left = (0.0, asr) if method == "none" else (draw.uniform(0, 4), draw.uniform(0, 30))
                made = {"attack": attack, "seed": number, "method": method, "clean": clean, "acc": base - lost}
                if method == "none":
                    found.append(claim(kind="training", asr=asr, **made))
                    continue
                der = None if attack == "none" else 0.5 + (asr - left - lost) / 200
                seconds = {"lpp": 0.01, "clp": 0.03, "bnp": 0.6, "nad": 40.0, "ibau": 60.0}[method]
                failed = "ran out of memory: 8 GB were needed" if (attack, method) == ("bpp", "nad") else None
                if failed:
                    found.append(claim(failed=failed, **{**made, "acc": None}))
                else:
                    found.append(
                        claim(asr=left, before=base, der=der, seconds=seconds, clean_seed=0 if clean else None, **made)
                    )
    for tenth in range(-8, 1):
        u = tenth / 2
        found.append(
            claim(method=f"lpp:lower={u:g}", acc=86 + min(0, -(u + 2) * 12), asr=max(0.0, -u * 3), before=87, der=0.9)
        )
    for half in range(9):
        u = half / 2
        found.append(
            claim(
                method=f"lpp:upper={u:g}", acc=86 * min(1, 0.2 + half / 5), asr=min(100.0, half**2), before=87, der=0.9
            )
        )
    found.append(claim(method="lpp:norm=l2sq", acc=86, asr=3, before=87, der=0.9))
    curves = {
        "per_image": [
            [max(-1.0, min(1.0, draw.gauss(0.1 + layer / 30, 0.2))) for _ in range(100)] for layer in range(20)
        ],
        "per_layer": [draw.gauss(0.1 + layer / 30, 0.1) for layer in range(20)],
    }
    found.append(
        claim(
            kind="correlation",
            method="none",
            acc=None,
            correlation={"layers": ["a"] * 20, "images": 100, "pearson": curves, "spearman": curves},
        )
    )
    scores = [abs(draw.gauss(1, 0.2)) for _ in range(126)] + [2.4, 2.9]
    mean = sum(scores) / 128
    std = (sum((s - mean) ** 2 for s in scores) / 128) ** 0.5
    cut = mean + 3 * std
    layer = {
        "path": "layer4.1.conv2",
        "scores": scores,
        "mean": mean,
        "std": std,
        "lower": mean - 3 * std,
        "band": mean + 1.5 * std,
        "upper": cut,
        "pruned_high": [c for c, s in enumerate(scores) if s > cut],
    }
    found.append(claim(acc=86, asr=2, before=87, der=0.9, seed=9, layers=[layer]))
    return grid(*found, cells=len(found) + 4)
