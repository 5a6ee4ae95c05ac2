"""TFRecord shards: writing and reading them."""
