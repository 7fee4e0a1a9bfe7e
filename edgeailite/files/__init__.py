"""Files: atomic writing, downloads, checkpoints, weights. Below the module kit and the engine."""
