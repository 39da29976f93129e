"""Logging during a run: Weights & Biases, TensorBoard, the console and its progress bar.
The files of the run folder are in runner/results/."""
