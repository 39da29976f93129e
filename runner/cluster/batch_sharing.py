"""Distribution of the batches of a run among its processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from classifier_lens.runner.cluster.leases import RENEWALS_PER_TIMEOUT, Lease, LeaseLostError, Leases
from classifier_lens.runner.logging.progress_bar import Progress
from classifier_lens.runner.types import Problem

MAX_POLL_INTERVAL = 5.0  # s between two checks of the leases of other processes


def solve_shared(
    batches: Mapping[str, Sequence[Problem]],
    done: Callable[[Sequence[Problem]], bool],
    leases: Leases,
    wait_for_others: bool,
    solve: Callable[[str, Lease], None],
    bar: Progress,
) -> None:
    """Solve every batch, by name, that is not done and not leased by another process.

    With `wait_for_others` it returns when all batches are done, and takes over those that other processes abandon.
    """
    remaining = {name: batch for name, batch in batches.items() if not done(batch)}
    while remaining:
        before = len(remaining)
        for name, batch in list(remaining.items()):
            solved_here = False
            if not done(batch):
                with leases.acquire(name) as lease:
                    if lease is None:
                        continue
                    if not done(batch):  # its last owner may have finished it meanwhile
                        try:
                            solve(name, lease)
                        except LeaseLostError:
                            bar.message(f"{name}: another process has taken it over, since this one showed no activity")
                            continue
                        solved_here = True
            leases.clear(name)
            del remaining[name]
            if not solved_here:
                bar.advance(len(batch))
        if len(remaining) == before:
            if not wait_for_others:
                return
            owners = ", ".join(owner.name for owner in {leases.owner(name) for name in remaining} if owner)
            bar.set_phase(
                f"waiting for {len(remaining)} batches of other processes: {owners}; a batch is taken over after "
                f"{leases.duration:g} s without activity"
            )
            time.sleep(min(leases.duration / RENEWALS_PER_TIMEOUT, MAX_POLL_INTERVAL))
