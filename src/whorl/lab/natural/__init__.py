"""Natural fingerprints (arXiv 2504.14871): models trained from scratch on the same windows, told apart by their text.

`config` says what is varied, `text` what is read, `train` makes the models, `answers` their texts, `measure` the
accuracies and controls, `results` the verdicts, `page` and `figures` what is shown. Data flows in that order.
"""
