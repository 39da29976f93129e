"""Where published weights come from, and pipelines with random weights for tests of their layout.
The command is scripts/fetch_weights.py."""
