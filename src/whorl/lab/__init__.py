"""Small controlled trainings: models whose lineage is known because we made them.

`corpus` finds text on every machine, `tokenizer` and `training` make real Llama models from it, `zoo` builds the
example family, `truth` reads the answer key. Importing this package loads no torch.
"""
