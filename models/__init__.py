"""Networks: generator, classifier, segmenter, captioner, CLIP, and the loading of their weights.
What they are used for is in tasks/; shipped weights are in models/pretrained/."""
