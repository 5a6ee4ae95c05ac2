"""The network: backbone, pyramid, heads and the Keras model."""
