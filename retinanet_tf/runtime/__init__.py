"""Runs exported files (ONNX, LiteRT) with numpy, Pillow and the file's own runtime, without TensorFlow and Keras."""
