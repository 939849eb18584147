"""A grid of experiments: attacks x rates x data sets x networks x recipes x seeds x defences x clean shares.

The path of a cell: a grid (`grid`) is read into cells (`cell`); `drive` takes those that are not done in the store
(`store`) from a queue (`queue`); an engine (`engine`, `on_ray`) performs them (`perform`), and the results are stored.
`adopt` imports networks instead of training them; `standing` shows a grid's progress, `publish` and `compact` its
results.
"""

from unbackdoor.experiments.adopt import adopt
from unbackdoor.experiments.cell import Cell, Correlation, Probe, Repair, Training
from unbackdoor.experiments.compact import compact
from unbackdoor.experiments.drive import part_of, run_grid
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
    "part_of",
    "publish",
    "read_grid",
    "run_grid",
    "standing",
]
