"""How long `unbackdoor scan` of a ResNet-18 file takes beside `import torch`, without which nothing can be read.

Fresh processes, alternating, so that whatever else the machine does falls on both alike.

    python benchmarks/scan_speed.py [--pairs 9] [--out benchmarks/scan_speed.json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from speed import network
from unbackdoor.provenance import processor

TARGET = 1.3


def run(command: list[str], *, fine: tuple[int, ...] = (0,)) -> float:
    """Seconds until the command ended, with one of the exit codes that are fine."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    elapsed = time.perf_counter() - start
    if done.returncode not in fine:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    return elapsed


def main() -> None:
    """Measure, print, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    tool = Path(sys.executable).with_name("unbackdoor")
    imports, scans = [], []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "resnet18.safetensors")
        save_file(network().state_dict(), file)
        for pair in range(arguments.pairs + 1):
            a = run([sys.executable, "-c", "import torch"])
            b = run([str(tool), "scan", str(file), "--arch", "resnet18"], fine=(0, 1))  # 1: it found something
            if pair:  # the first fills the caches
                imports.append(a)
                scans.append(b)
    importing, scanning = statistics.median(imports), statistics.median(scans)
    ratio = scanning / importing
    print(f"import torch     {importing:6.2f} s")
    print(f"unbackdoor scan  {scanning:6.2f} s")
    print(f"ratio {ratio:.2f} <= {TARGET}: {'met' if ratio <= TARGET else 'MISSED'}; load average before: {load:.2f}")
    record = {
        "command": "unbackdoor scan resnet18.safetensors --arch resnet18",
        "torch": torch.__version__,
        "cpu": processor(),
        "load_average_before": round(load, 2),
        "pairs": arguments.pairs,
        "median_s": {"import torch": round(importing, 3), "unbackdoor scan": round(scanning, 3)},
        "ratio": round(ratio, 3),
        "target": TARGET,
        "met": ratio <= TARGET,
    }
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
