"""Data sets, the renderer of the planted world, and the selection of images and masks.
Small classifiers trained on them are in models/pretrained/."""
