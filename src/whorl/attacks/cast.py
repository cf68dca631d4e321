"""Store a model in another float type: the smallest change a copy can have."""

from whorl.attacks._job import Job
from whorl.attacks._model_files import DTYPES
from whorl.errors import UsageError, safe_name


def run(job: Job, *, dtype: str = "BF16") -> None:
    """Write all tensors as "F32", "F16" or "BF16", rounded to the nearest value."""
    if dtype not in DTYPES:
        raise UsageError(f"Unknown dtype '{safe_name(dtype)}'; expected one of {', '.join(DTYPES)}.")
    tensors, config = job.read()
    job.write(job.record("cast"), tensors, config, dtype=dtype)
