"""Relations between models. `exact` recognises copies; statistical lineage verdicts are not part of this release."""
