"""Fingerprints read from weights: one method per file, all under the contract of `whorl.weights.method`."""
