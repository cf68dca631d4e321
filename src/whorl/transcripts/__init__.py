"""What models said: the record, sets on disk, prompt sets, splits by prompt, and the checks before any analysis.

`record` defines one answer and `codec` its line of JSON; `store` keeps sets of them, `cache` what other runs have paid for,
`importing` and `parquet` bring them in and out. `prompts` and `splits` say what was asked and which part it belongs to,
`checks` looks for cues that would make attribution trivial and `normal` takes them out, and `answers` is the balanced table
(the same prompts for every model) that every method of `whorl.outputs` reads.
"""
