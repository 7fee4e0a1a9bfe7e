"""Reference training scripts, to run and to fork."""
