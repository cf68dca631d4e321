"""Methods that read generated text.

`features` turns texts into n-gram weights, `classifier` is the linear classifier on them, `accuracy` cross-validates it over
prompt groups, `ngrams` says which n-grams characterise a model, `transforms` takes parts of the style away, and `encoder` is
the fine-tuned transformer in place of n-grams.
"""
