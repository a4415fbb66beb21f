"""What encoders run on: devices, the import of timm, building without weights."""
