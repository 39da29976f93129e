"""Durable files of text and tensors, which appear whole or not at all.
Which files a run folder has is in runner/results/."""
