"""Generated pictures with exact labels."""
