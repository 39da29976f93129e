"""Several processes at one run and jobs of a queue: leases of batches, signals, submission, workers, job status.
The work itself is in runner/run.py."""
