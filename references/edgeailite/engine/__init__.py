"""The visible loops of the scripts, and the small files they stand on."""
