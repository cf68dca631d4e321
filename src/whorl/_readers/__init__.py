"""Readers of foreign files: all distrust of files lives here.

`folder.open_local` opens what a user names; `safetensors_header` and `strict_json` decide what is well-formed;
`limits` holds every cap. Readers raise only errors of `whorl.errors`.
"""
