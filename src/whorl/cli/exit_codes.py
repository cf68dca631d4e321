"""Exit codes, the same for all commands."""

DONE = 0  # a verdict was reached
NEGATIVE = 1  # a negative verdict where a yes was asked for
USAGE = 2  # unknown option, unknown method, contradictory config
REFUSED = 3  # malformed, unsafe or unsupported input
UNDECIDED = 4  # undecided, or something was skipped
BUG = 70  # a traceback of ours; outside the table
INTERRUPTED = 130  # Ctrl-C
