"""Commands beside run.py: submission, figures, pages, weights, user studies.
Training, evaluation and benchmarks are in folders."""
