"""Data sets, batches, images and their augmentation."""
