"""What a host can do to a model without touching its weights: prompts, decoding, filters and guards in front of it.

    from whorl.serving import serve

    guarded = serve("suppress-top", opened, k=3, n=1)
    guarded.model.ref        # "base-0 behind suppress-top(k=3,n=1)"

Every attack is a sampler around a model, so whatever asks a model can ask the attacked one. One attack a file; `suite` holds
the register with the settings that papers report.
"""

from whorl.serving.front import Front
from whorl.serving.suite import ATTACKS, Attack, serve
from whorl.serving.token_forcing import Candidate, force_tokens

__all__ = ["ATTACKS", "Attack", "Candidate", "Front", "force_tokens", "serve"]
