"""Training of the shipped small networks, and their model cards.
Settings are in conf/train/."""
