"""Classification and box losses, their normalizers, hard example mining."""
