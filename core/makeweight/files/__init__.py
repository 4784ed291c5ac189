"""The export: tensors as bytes, its container, and programs; files written whole or not at all."""
