"""Models by name: pretrained encoders, checkpoints, and the settings both are made from."""
