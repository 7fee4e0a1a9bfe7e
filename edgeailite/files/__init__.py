"""Files: atomic writing, downloads, checkpoints, weights. Imports no other part of the package."""
