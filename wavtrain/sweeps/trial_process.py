"""A script as a process of a trial: it ends with the sweep, waits for one before it in its folder, leaves its exit code there.

    python -m wavtrain.sweeps.trial_process FOLDER SCRIPT [ARGUMENT ...]

Standard input is a pipe of which the sweep has the other end, so it is closed when the sweep closes it or dies in whatever way.
"""

import os
import runpy
import signal
import sys
import threading
import time
from contextlib import suppress
from functools import partial

from wavtrain.durable_files import lock
from wavtrain.reporting import errands

PROCESS_LOCK, EXIT_CODE = ".process.lock", ".exit_code"
GRACE = 120.0  # seconds to finish an update and write a checkpoint


def main(folder: str, script: str, *words: str) -> None:
    """Run the script as python does."""
    threading.Thread(target=_end_with_sweep, daemon=True).start()
    held = None
    while held is None and os.environ.get("RANK", "0") == "0":  # a process of a sweep that was killed may still be saving
        held = lock(os.path.join(folder, PROCESS_LOCK))
    errands.farewells.append(partial(_note, folder))
    sys.argv, sys.path[0] = [script, *words], os.path.dirname(os.path.abspath(script))
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        _note(folder, end.code)
        raise
    except BaseException:
        _note(folder, 1)
        raise


def _end_with_sweep() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os.kill(os.getpid(), signal.SIGKILL)


def _note(folder: str, code: object) -> None:
    """Launchers end with codes of their own; of several processes the first that fails says why."""
    code = code if isinstance(code, int) else int(code is not None)
    with suppress(FileExistsError):
        if code:
            with open(os.path.join(folder, EXIT_CODE), "x") as file:
                file.write(str(code))


if __name__ == "__main__":
    main(*sys.argv[1:])
