"""MEraser (arXiv 2506.12551): what removes a planted fingerprint, what repairs the model, and what that costs it."""
