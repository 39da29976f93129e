"""What is asked of a classifier: one module per task, each readable alone.
Shared parts are in objectives/, problems/, prompts/, units/ and analysis/."""
