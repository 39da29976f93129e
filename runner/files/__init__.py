"""Files that are written whole or not at all and outlast a power cut: text, tensors.
Which files a run folder has is in runner/results/."""
