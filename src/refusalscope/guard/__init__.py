"""The belief guard: the model's own belief of harm as a calibrated safeguard (arXiv 2507.11878)."""
