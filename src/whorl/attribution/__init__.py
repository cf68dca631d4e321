"""Attribution: which of the enrolled models wrote a text, with calibrated probabilities and "none of these".

`fit` makes an `Attributor` from transcripts, `bundle` keeps it in a folder, `predict` asks it, `enrol` adds a model.
Behind them: `corpus` (texts and their split by prompt), `temperature` (probabilities), `conformal` (p-values and the verdict),
`pooling` (several texts of one source), `typicality` and `strangers` (models that are not enrolled), `habits` (texts unlike
the calibrated ones), `evaluation` and `tables` (what every bundle ships with).
"""
