"""Post-training methods, training methods, mixed precision."""
