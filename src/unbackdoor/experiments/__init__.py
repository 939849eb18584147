"""A grid of experiments: attacks x rates x data sets x networks x recipes x seeds x defences x clean shares.

A grid (`grid`) is read into cells (`cell`); the store (`store`) says which of them are done; an engine (`engine`,
`on_ray`) performs the others (`perform`); `drive` brings them together.
"""

from unbackdoor.experiments.adopt import adopt
from unbackdoor.experiments.cell import Cell, Correlation, Probe, Repair, Training
from unbackdoor.experiments.compact import compact
from unbackdoor.experiments.drive import Standing, run_grid, standing
from unbackdoor.experiments.engine import Engine, Local
from unbackdoor.experiments.grid import Grid, read_grid
from unbackdoor.experiments.publish import publish
from unbackdoor.experiments.store import Store

__all__ = [
    "Cell",
    "Correlation",
    "Engine",
    "Grid",
    "Local",
    "Probe",
    "Repair",
    "Standing",
    "Store",
    "Training",
    "adopt",
    "compact",
    "publish",
    "read_grid",
    "run_grid",
    "standing",
]
