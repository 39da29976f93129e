"""Where classifiers come from: one module per source of weights, each loader named by YAML files in conf/classifier/.
What a loaded classifier can do is in models/classifier/image_classifier.py."""
