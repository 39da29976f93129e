"""Sources of published weights, and pipelines with random weights for tests of their layout.
The command is scripts/fetch_weights.py."""
