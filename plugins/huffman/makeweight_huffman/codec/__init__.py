"""The blob: tensors coded without loss, on NumPy arrays. FORMAT.md says what it holds."""
