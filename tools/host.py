"""The table of docs/pytorch.md on what a call costs the host, from studies/measuring/host.py."""

import cog
import pandas as pd


def table(path: str) -> None:
    """Print it: the least of all processes, by tree."""
    rows = pd.read_csv(path)
    least = rows.groupby(["call", "tree"], sort=False).least_us.min().unstack()
    cog.outl("| call | before, µs | now, µs | now over before |")
    cog.outl("|---|---|---|---|")
    for call, of in least.loc[rows.call.unique()].iterrows():
        cog.outl(f"| {call} | {of.before:.1f} | {of.now:.1f} | {of.now / of.before:.2f} |")
