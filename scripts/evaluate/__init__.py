"""Metrics of the results table, measured against the known truth of the planted world and on CIFAR-10.
Times are measured in scripts/bench/."""
