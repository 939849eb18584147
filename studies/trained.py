"""What the record beside a trained network says: of `unbackdoor train`, or of a grid's store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read(folder: Path) -> tuple[Row, Row]:
    """The settings of a network's training, whose `data` is the data set's name, and its rates on the test set."""
    record = json.loads((folder / "record.json").read_text())
    record = record.get("record", record)
    config = dict(record.get("config", record))
    if isinstance(config["data"], dict):
        config["data"] = config["data"]["name"]
    config["data"] = config["data"].rpartition(":")[2]  # a data set of one's own is known by its name
    return config, record["result"].get("rates", record["result"])
