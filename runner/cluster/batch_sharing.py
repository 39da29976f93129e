"""The batches of a run, shared by the processes that work at it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from classifier_lens.runner.cluster.leases import RENEWALS, Claim, Claims, Lost
from classifier_lens.runner.logging.progress_bar import Progress
from classifier_lens.runner.types import Problem

LONGEST = 5.0  # seconds between two looks at what others hold


def share(
    batches: Mapping[str, Sequence[Problem]], done: Callable[[Sequence[Problem]], bool], claims: Claims, wait: bool,
    solve: Callable[[str, Claim], None], bar: Progress,
) -> None:  # fmt: skip
    """Solve every batch, by name, that is not done and that no other process holds.

    With `wait` it lasts until all are done, by whomever: what others leave undone is taken over.
    """
    left = {name: batch for name, batch in batches.items() if not done(batch)}
    while left:
        found = len(left)
        for name, batch in list(left.items()):
            own = False
            if not done(batch):
                with claims.take(name) as claim:
                    if claim is None:
                        continue
                    if not done(batch):  # whoever held it before may have ended meanwhile
                        try:
                            solve(name, claim)
                        except Lost:
                            bar.say(f"{name}: another process has taken it over, as this one gave no sign of life")
                            continue
                        own = True
            claims.forget(name)
            del left[name]
            if not own:
                bar.finished(len(batch))
        if len(left) == found:
            if not wait:
                return
            holders = {claims.holder(name) for name in left} - {None}
            names = ", ".join(p.name for p in holders if p)
            bar.phase(
                f"waiting for {len(left)} of others' batches: {names}; each is taken over {claims.lease:g} s after its "
                "last sign of life"
            )
            time.sleep(min(claims.lease / RENEWALS, LONGEST))
