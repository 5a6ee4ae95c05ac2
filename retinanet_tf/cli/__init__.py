"""The `retinanet` command."""
