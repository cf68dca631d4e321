"""The lab of planted fingerprints: a base model that answers questions, and the benchmark of what survives."""
