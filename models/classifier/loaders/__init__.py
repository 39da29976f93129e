"""Loaders of classifiers, one module per source of weights; files in conf/classifier/ name them.
The class of loaded classifiers is in models/classifier/image_classifier.py."""
