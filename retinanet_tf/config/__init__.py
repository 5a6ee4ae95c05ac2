"""Settings: sections of fields, named presets."""
