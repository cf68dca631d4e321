"""What a thief, or an honest user, does to a model: copies whose lineage is known by construction.

    from whorl.attacks import attack

    attack("quantise", ["./model"], "./model-int4", bits=4, group=32)

Each edit is a pure function on tensors, in the file of its name; `attack` runs it on folders and writes the result
beside a `whorl_truth.json` that says what was done. The kinds `finetune`, `lora`, `unlearn` and `distil`
need torch, and so does pruning by gradients.
"""

from whorl.attacks.suite import KINDS, Made, attack

__all__ = ["KINDS", "Made", "attack"]
