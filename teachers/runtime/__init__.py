"""Runtime of encoders: devices and precisions, the import of timm, building without initialised weights."""
