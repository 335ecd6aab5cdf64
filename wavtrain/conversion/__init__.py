"""Models of other systems, as directories that transformers and the scripts here read."""
