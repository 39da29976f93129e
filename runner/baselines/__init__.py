"""What can stand in for the method, for comparison, and the regularizers of images that are optimized as pixels.
Images as parameters are in models/generator/pixel_space.py."""
