"""What a thief, or an honest user, does to a model: copies whose lineage is known by construction.

Each edit is a pure function on tensors by name, in the layout of the file; `write_model` saves the result beside a
`whorl_truth.json` that says what was done. Nothing here needs torch.
"""
