"""Times and memory of the runner beside the plain loop of published code.
Quality is measured in scripts/evaluate/, quality per second here."""
