"""COCO metrics and what explains them."""
