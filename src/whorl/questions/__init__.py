"""Questions with their answers: what regularises a planting, what erases a fingerprint and what repairs the model."""
