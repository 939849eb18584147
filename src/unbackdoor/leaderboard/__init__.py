"""The benchmark as a reader sees it: claims, tables, plots, the page. Nothing here imports torch.

`claims` are what was measured, `claim_checks` reads one, `claim_folder` many; `paper` holds what was printed,
`tables` puts both side by side; `text`, `timing`, `plots` and `site` show that, and `folder` writes it all.
"""

from unbackdoor.leaderboard.claim_folder import read_digests, read_grids, write_grid
from unbackdoor.leaderboard.claims import Claim, ClaimedGrid, Count, done_in
from unbackdoor.leaderboard.folder import check_folder, write_report

__all__ = [
    "Claim",
    "ClaimedGrid",
    "Count",
    "check_folder",
    "done_in",
    "read_digests",
    "read_grids",
    "write_grid",
    "write_report",
]
