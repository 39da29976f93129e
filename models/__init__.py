"""The networks: generator, classifier, segmenter, captioner, CLIP, and where their weights are loaded from.
What is asked of them is in tasks/; small weights that are shipped are in models/pretrained/."""
