"""Start-up: `whorl --help` against a bare interpreter, and what `import whorl` loads.

python benchmarks/startup.py
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path


def seconds(command, repeats=15):
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def main():
    whorl = Path(sys.executable).with_name("whorl")
    rows = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "python -c 'import whorl'": [sys.executable, "-c", "import whorl"],
        "whorl --help": [str(whorl), "--help"],
    }
    for name, command in rows.items():
        print(f"{name}: {1000 * seconds(command):.0f} ms")
    code = (
        "import sys, whorl; print(*sorted({'torch', 'transformers', 'numpy', 'scipy'} & set(sys.modules)) or ['none'])"
    )
    print("import whorl loads of torch, transformers, numpy, scipy:", end=" ")
    print(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip())


if __name__ == "__main__":
    main()
