"""A classifier as the rest of the project sees it: images in [0, 1] in, logits and features out, checked and hooked.
Sources of weights are in models/classifier/loaders/."""
