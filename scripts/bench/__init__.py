"""Time and memory of the runner, compared with the plain loop of published code.
Quality is measured in scripts/evaluate/, quality per second here."""
