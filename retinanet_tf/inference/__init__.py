"""From images to detections."""
