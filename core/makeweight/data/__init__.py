"""Data sets by name, image transforms, augmentation, and batches."""
