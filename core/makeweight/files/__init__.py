"""Files: the export (model.safetensors), programs (ONNX, pt2), validated reading and atomic writing."""
