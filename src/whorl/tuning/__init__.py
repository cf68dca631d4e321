"""Training on prompts with answers: what plants a fingerprint, what erases it, and what an attacker tunes with."""
