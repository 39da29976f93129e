"""Units of a classifier: addressing, activation ranking, neural principal components, HiResCAM, feature attack.
Access to layers is in models/classifier/module_hooks.py."""
