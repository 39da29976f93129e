"""The tasks, one module each, readable alone.
Shared parts are in objectives/, problems/, prompts/, units/ and analysis/."""
