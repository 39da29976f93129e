"""Which images, targets and prompts a task's problems have, and checks before the first step.
Which images of a data set are selected is in data/image_selection.py."""
