"""The benchmark of planted fingerprints against attacks (spec 8): what survives, at what cost to the attacker.

`config` says what is planted and attacked, `cells` lists the measurements, `planting` makes the models, `work` measures
one cell, `run` all that are missing; `outcome`, `results` and `erasure` judge the rows; `page`, `erasure_page`, `figures`
and `html` show them. Data flows in that order, and nothing is shown that does not follow from the rows.
"""
