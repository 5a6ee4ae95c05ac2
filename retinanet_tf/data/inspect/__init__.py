"""The dataset report."""
