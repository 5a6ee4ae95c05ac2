"""The `retinanet` command; its subcommands are a module each."""

__all__ = ["main", "serving_client"]
