"""Runs shared by several processes, and jobs of a cluster: leases of batches, signals, submission, workers, job status.
The computation itself is in runner/run.py."""
