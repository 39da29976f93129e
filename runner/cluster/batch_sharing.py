"""The batches of a run, shared by the processes that work at it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from classifier_lens.runner.cluster.leases import RENEWALS_PER_TIMEOUT, Lease, LeaseLostError, Leases
from classifier_lens.runner.logging.progress_bar import Progress
from classifier_lens.runner.types import Problem

MAX_POLL_INTERVAL = 5.0  # seconds between two looks at what others hold


def solve_shared(
    batches: Mapping[str, Sequence[Problem]],
    done: Callable[[Sequence[Problem]], bool],
    claims: Leases,
    wait_for_others: bool,
    solve: Callable[[str, Lease], None],
    bar: Progress,
) -> None:
    """Solve every batch, by name, that is not done and that no other process holds.

    With `wait_for_others` it lasts until all are done, by whomever: what others leave undone is taken over.
    """
    left = {name: batch for name, batch in batches.items() if not done(batch)}
    while left:
        found = len(left)
        for name, batch in list(left.items()):
            own = False
            if not done(batch):
                with claims.acquire(name) as claim:
                    if claim is None:
                        continue
                    if not done(batch):  # whoever held it before may have ended meanwhile
                        try:
                            solve(name, claim)
                        except LeaseLostError:
                            bar.message(f"{name}: another process has taken it over, as this one gave no sign of life")
                            continue
                        own = True
            claims.clear(name)
            del left[name]
            if not own:
                bar.advance(len(batch))
        if len(left) == found:
            if not wait_for_others:
                return
            holders = {claims.owner(name) for name in left} - {None}
            names = ", ".join(p.name for p in holders if p)
            bar.set_phase(
                f"waiting for {len(left)} of others' batches: {names}; each is taken over "
                f"{claims.duration:g} s after its "
                "last sign of life"
            )
            time.sleep(min(claims.duration / RENEWALS_PER_TIMEOUT, MAX_POLL_INTERVAL))
