"""Sweeps in the tests: started as a user does, their processes looked for, what they left behind."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
from conftest import ROOT

SCRIPT = str(Path(__file__).parent / "swept_script.py")
SPACE = "learning_rate: {low: 1.0e-4, high: 2.0e-3, log: true}\nlr_scheduler_type: {choices: [linear, cosine]}\n"

LAUNCHER = """
import subprocess, sys
sys.exit(subprocess.run([sys.executable, *sys.argv[sys.argv.index("-m"):]]).returncode and 1)
"""


def stand_in_launcher(folder):
    """A folder for PYTHONPATH: in place of `accelerate launch`, which takes seconds to begin and ends with codes of its own."""
    (folder / "launcher" / "accelerate" / "commands").mkdir(parents=True)
    (folder / "launcher" / "accelerate" / "__init__.py").touch()
    (folder / "launcher" / "accelerate" / "commands" / "launch.py").write_text(LAUNCHER)
    return str(folder / "launcher")


def write_sweep(folder, space=SPACE, config="learning_rate: 1.0e-3\n"):
    (folder / "space.yaml").write_text(space)
    (folder / "base.yaml").write_text(config)


def command(folder, num_trials, *words, script=SCRIPT):
    return [script, "--config", str(folder / "base.yaml"), "--search_space", str(folder / "space.yaml"), "--output_dir",
            str(folder / "sweep"), "--num_trials", str(num_trials), "--metric", "contrastive_accuracy",
            *(words if "--" in words else (*words, "--"))]


def started(words, **environment):
    with open(os.path.join(words[words.index("--output_dir") + 1] + ".log"), "ab") as log:
        return subprocess.Popen([sys.executable, str(ROOT / "run_sweep.py"), *words], env={**os.environ, **environment},
                                stdout=log, stderr=log)


def wait_for(is_so, process=None):
    deadline = time.monotonic() + 120
    while not is_so():
        assert process is None or process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def trial(folder, number):
    return folder / "sweep" / "trials" / f"{number:04d}"


def of_trials(folder):
    """Processes of its trials: their command lines name their directories."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder / "sweep" / "trials") in word for word in process.info["cmdline"] or ()):
            found.append(process)
    return found


def rows(folder):
    with open(folder / "sweep" / "trials.csv", newline="") as file:
        return list(csv.DictReader(file))
