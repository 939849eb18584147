"""A grid of experiments: attacks x rates x data sets x networks x recipes x seeds x defences x clean shares.

In the order in which a cell passes through: a grid (`grid`) is read into cells (`cell`); `drive` asks a queue (`queue`)
for those that are not done in the store (`store`); an engine (`engine`, `on_ray`) performs them (`perform`), and what
comes back is settled. `adopt` takes networks over instead of training them; `standing` says how far a grid is,
`publish` and `compact` what came of it.
"""

from unbackdoor.experiments.adopt import adopt
from unbackdoor.experiments.cell import Cell, Correlation, Probe, Repair, Training
from unbackdoor.experiments.compact import compact
from unbackdoor.experiments.drive import run_grid
from unbackdoor.experiments.engine import Engine, Local
from unbackdoor.experiments.grid import Grid, read_grid
from unbackdoor.experiments.publish import publish
from unbackdoor.experiments.standing import Standing, standing
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
