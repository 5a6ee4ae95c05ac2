"""Exports for serving."""
