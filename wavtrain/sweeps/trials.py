"""A trial: its process is launched, watched, ended early if it is told to, and what became of it is read."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from wavtrain import InputError
from wavtrain.sweeps.objectives import Objective, updates, validations
from wavtrain.sweeps.script_flags import Base, environment, write_flags
from wavtrain.sweeps.trial_process import EXIT_CODE, PROCESS_LOCK

FLAGS, LOG = "trial.yaml", "log.txt"
SECONDS_BETWEEN_LOOKS = 0.5
REFUSED, COLLAPSED, TOLD_TO_STOP = 2, 3, (130, 143)  # what our scripts end with
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")

Judge = Callable[[int, float], bool]


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: complete, pruned, collapsed, refused, crashed or unmeasured."""

    kind: str
    value: float | None = None
    ties: list[float] = field(default_factory=list)
    updates: int = 0
    reason: str = ""


def run_trial(base: Base, folder: str, params: dict[str, Any], accelerate_words: Sequence[str], objective: Objective,
              is_hopeless: Judge) -> Outcome:
    """From its beginning or where a killed sweep left it. `is_hopeless` gets the value of each validation as it comes.

    A collapse ends it, but not the base config (which has no params), unless --on_collapse is given.
    """
    flags = base.flags_of(folder, params)
    if "resume_from_checkpoint" in base.resolved:
        flags["resume_from_checkpoint"] = "latest"
    if "on_collapse" in base.resolved and params:
        flags.setdefault("on_collapse", "stop")
    write_flags(os.path.join(folder, FLAGS), flags)
    with suppress(FileNotFoundError):
        os.remove(os.path.join(folder, EXIT_CODE))
    process = _launched(base.script, folder, accelerate_words)
    try:
        ended_early = _watch(process, folder, objective, is_hopeless)
    finally:
        _end(process)
    return ended_early or _outcome(process.returncode, folder, objective)


def prepare(base: Base, output_dir: str) -> None:
    """The speech, once, so that no trial does; where the script has no --preprocessing_only there is nothing to prepare."""
    if "preprocessing_only" not in base.resolved:
        return
    path = os.path.join(output_dir, f"preparation.{os.getpid()}.yaml")
    write_flags(path, base.given)
    try:
        command = [sys.executable, base.script, "--config", path, "--preprocessing_only"]
        code = subprocess.run(command, stdin=subprocess.DEVNULL, env=environment()).returncode
    finally:
        os.remove(path)
    if code:
        raise InputError(f"{os.path.basename(base.script)} --preprocessing_only ended with code {code}, so no trial can begin: "
                         "see above")


def _launched(script: str, folder: str, accelerate_words: Sequence[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "accelerate.commands.launch", *accelerate_words, "-m", "wavtrain.sweeps.trial_process",
               folder, script, "--config", os.path.join(folder, FLAGS)]
    with open(os.path.join(folder, LOG), "ab") as log:  # a session of its own: Ctrl-C is the sweep's
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=environment(),
                                start_new_session=True)


def _watch(process: subprocess.Popen[bytes], folder: str, objective: Objective, is_hopeless: Judge) -> Outcome | None:
    """Until it has ended, or there is a reason to end it, which is returned."""
    seen = -1
    while True:
        with suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_BETWEEN_LOOKS)
        for record in validations(folder):
            value = record.get(objective.metric)
            if objective.metric not in record:
                known = ", ".join(name for name in record if name not in ("phase", "step"))
                return Outcome("unmeasured", reason=f"--metric {objective.metric} is not among those of validation: {known}")
            if record["step"] > seen and value is not None:
                seen = record["step"]
                if is_hopeless(seen, value) and process.poll() is None:
                    return Outcome("pruned", updates=seen, reason="worse than other trials were at this update")
        if process.poll() is not None:
            return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Its processes see the pipe close, finish their update and leave."""
    process.stdin.close()
    process.wait()


def _outcome(code: int, folder: str, objective: Objective) -> Outcome:
    done = updates(folder)
    if code == 0:
        value, ties = objective.worth(validations(folder))
        if value is None:
            return Outcome("unmeasured", updates=done, reason=f"metrics.jsonl has no finite validation {objective.metric}")
        return Outcome("complete", value, ties, done)
    reason = _last_words(os.path.join(folder, LOG))
    if not os.path.exists(os.path.join(folder, PROCESS_LOCK)):
        raise InputError(f"accelerate launch ended with code {code} before the script began: {reason} "
                         f"({os.path.join(folder, LOG)}): look at --accelerate_arguments")
    with suppress(FileNotFoundError), open(os.path.join(folder, EXIT_CODE)) as file:
        code = int(file.read())
    if code in TOLD_TO_STOP:  # as the sweep will be in a moment, if this comes from a scheduler
        raise KeyboardInterrupt
    kind = {REFUSED: "refused", COLLAPSED: "collapsed"}.get(code, "crashed")
    return Outcome(kind, updates=done, reason=reason)


def _last_words(path: str) -> str:
    """The line in which our scripts say what is wrong, else the last one that is no frame of a launcher's."""
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = [ESCAPES.sub("", line).strip() for line in file if line.strip()]
    faults = [line.split(": error: ", 1)[1] for line in lines if ": error: " in line]
    errors = [line for line in lines if re.match(r"(?!subprocess)[\w.]*(Error|Exception)\b", line)]
    return (faults or errors or lines or ["it said nothing"])[-1][:300]
