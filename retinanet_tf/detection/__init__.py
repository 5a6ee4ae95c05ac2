"""Boxes, anchors, assignment and post-processing: pure functions without a network."""
