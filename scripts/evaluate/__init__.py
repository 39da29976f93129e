"""Metrics of the results tables, measured against the ground truth of the planted world and on CIFAR-10.
Times are measured in scripts/bench/."""
