"""What is told while a run goes on: Weights & Biases, TensorBoard, the console and its progress bar.
What stays in the run folder is in runner/results/."""
