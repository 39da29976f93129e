"""Masks of objects (cross-attention, GrabCut, SAM, Grounded SAM, CLIPSeg) and their post-processing.
Masks from files are in data/mask_files.py."""
