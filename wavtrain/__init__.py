"""Speech pretraining and fine-tuning: the facts that the scripts share. docs/design.md shows the floors."""

import os

__version__ = "0.1.0"

if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & set(os.environ):
    # read when torch is loaded: threads that spin for long stall where a core is busy (benchmarks/bench_cpu_settings.py)
    os.environ["GOMP_SPINCOUNT"] = "1000"


class InputError(Exception):
    """A fault of the user's flags, files or tables: scripts print its one line and leave with its exit code."""

    exit_code = 2
