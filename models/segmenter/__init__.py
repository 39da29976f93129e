"""Masks of objects: from cross-attention maps, GrabCut, SAM, Grounded SAM, CLIPSeg, and the post-processing of masks.
Masks from files are in data/mask_files.py."""
