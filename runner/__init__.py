"""The experiment engine: what a run is and how its batches are solved. Its folders hold the optimization, baselines,
results, work on a cluster, logging, the page and the configuration; what a task or a network does is not here."""
