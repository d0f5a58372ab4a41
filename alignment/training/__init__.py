"""Training: SFT and preference optimisation."""
