"""Is this endpoint the model it claims to be? Two samples of answers to the same prompts, and stated error rates.

`identity` gives the verdict and says in one place how it comes about. `draws` pairs the answers, `permutation` turns
statistics into p-values, `power` says what would have been noticed. One file a statistic: `kernel` (characters),
`first_word`, `classifier`, `loglikelihood`, `length`. `sequential` is the form for paid endpoints, over `betting` and
`evalues`.
"""
