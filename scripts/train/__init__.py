"""Training of the small networks that are shipped, and their model cards.
Settings are in conf/train/."""
