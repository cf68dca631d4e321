"""Numerical linear algebra: spectra with error bounds, head operators, matching and layer alignment."""
