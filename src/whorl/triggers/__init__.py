"""Planted fingerprints: secret triggers that an owner trains into a model and later asks for."""
