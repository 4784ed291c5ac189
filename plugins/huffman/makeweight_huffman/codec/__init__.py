"""The codec: lossless coding of tensors as one blob, on NumPy arrays. FORMAT.md specifies the blob."""
