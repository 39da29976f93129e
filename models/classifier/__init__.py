"""The classifier interface: images in [0, 1] to logits, features and activations of modules, and checks of networks.
Sources of weights are in models/classifier/loaders/."""
