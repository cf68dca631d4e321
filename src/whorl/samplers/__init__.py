"""Where transcripts come from: a local model, an HTTP endpoint, vLLM, or a script (in `whorl.testing`), behind one seam.

`seam` is the interface, `sample` the public verb: it plans, skips what is on disk or in the cache, and keeps every answer.
"""
