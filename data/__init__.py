"""Data sets, decoding and selection of images, masks from files, and shortcuts in training images.
planted/ renders the planted world; classifiers that are trained on the data sets are in models/pretrained/."""
