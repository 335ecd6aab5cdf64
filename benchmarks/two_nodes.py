"""Two nodes on one machine: network namespaces with an address each, a torchrun in each, against one process.

    python benchmarks/two_nodes.py
    python benchmarks/two_nodes.py --engines fsdp2 --updates 12

Needs Linux, root and iproute2 (`ip netns`); elsewhere it ends with one line and code 2. The nodes see each other through a
pair of virtual Ethernet devices and nothing else; the disk is one, as on a cluster. For each engine the run is made twice:
undisturbed, and with everything on the second node killed (kill -9) after a checkpoint, whereupon the first node has to end by
itself, and both go on with --resume_from_checkpoint latest. Both are compared with one process of the same micro-batches.
The table: seconds, of them after the kill until the first node had ended, updates that were made twice, the largest relative
difference of any number in metrics.jsonl, the largest difference of any weight. A difference above 1e-5, of weights above 1e-4,
ends with code 1. No GPU is used, so NCCL is not tried here.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
SCRIPT = "run_wav2vec2_pretraining_no_trainer.py"
ENGINES = {"ddp": {}, "fsdp2": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}}
ADDRESSES = ("10.77.0.1", "10.77.0.2")
SAVING_STEPS, KILLED_AFTER, PORT = 2, 4, 29500
MOST_SECONDS = 300  # of any run
TOLERANCE, TOLERANCE_OF_WEIGHTS = 1e-5, 1e-4
HEADER = ("run", "seconds", "to end", "made twice", "metrics", "weights")


@dataclass(frozen=True)
class Node:
    """A network namespace and what it is reached by."""

    name: str
    device: str
    address: str

    def pids(self) -> list[int]:
        """Of all that runs there."""
        return [int(each) for each in ip("netns", "pids", self.name).split()]

    def kill(self) -> None:
        """As when the machine is switched off."""
        while pids := self.pids():
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue  # it ended meanwhile
            time.sleep(0.05)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=tuple(ENGINES), default=tuple(ENGINES), help="each in turn (all)")
    parser.add_argument("--updates", type=int, default=8, metavar="N", help=f"more than {KILLED_AFTER} (%(default)s)")
    args = parser.parse_args()
    if args.updates <= KILLED_AFTER:
        parser.error(f"--updates {args.updates}: nothing would be left after update {KILLED_AFTER}: give more")
    return args


def main() -> int:
    args = parse_arguments()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that namespaces are removed
    if os.geteuid() != 0 or shutil.which("ip") is None:
        print("two_nodes.py: needs root and `ip netns`: run it as root on Linux with iproute2", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        subprocess.run([sys.executable, "run_preprocessing.py", "--dataset_name", "demo_corpus", "--output_dir",
                        str(here / "prepared")], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        try:
            with two_nodes() as nodes:
                return compare(args, here, nodes)
        except subprocess.CalledProcessError as error:
            if error.cmd[0] != "ip":
                raise
            print(f"two_nodes.py: `{' '.join(error.cmd)}`: {error.stderr.strip()}: run it where root may make network "
                  "namespaces (CAP_SYS_ADMIN, CAP_NET_ADMIN)", file=sys.stderr)
            return 2


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@contextmanager
def two_nodes() -> Iterator[tuple[Node, Node]]:
    """They are there, connected; afterwards nothing of them is."""
    first, second = (Node(f"wavtrain{os.getpid()}-{number}", f"w{os.getpid()}-{number}", address)
                     for number, address in enumerate(ADDRESSES))
    try:
        for node in (first, second):
            ip("netns", "add", node.name)
        peer = "type", "veth", "peer", "name", second.device, "netns", second.name
        ip("link", "add", first.device, "netns", first.name, *peer)
        for node in (first, second):
            ip("-n", node.name, "address", "add", f"{node.address}/24", "dev", node.device)
            for device in ("lo", node.device):
                ip("-n", node.name, "link", "set", device, "up")
        yield first, second
    finally:
        for node in (first, second):
            if node.name in ip("netns", "list").split():
                node.kill()
                ip("netns", "delete", node.name)  # and with it its end of the cable


def command(folder: Path, output_dir: Path, updates: int, accumulation: int) -> list[str]:
    """Of one process."""
    return [SCRIPT, "--dataset_name", str(folder / "prepared"), "--model_name_or_path", "configs/models/wav2vec2-tiny",
            "--output_dir", str(output_dir), "--max_batch_duration_in_seconds", "12", "--max_train_steps", str(updates),
            "--num_warmup_steps", "2", "--logging_steps", "1", "--saving_steps", str(SAVING_STEPS), "--report_to", "none",
            "--gradient_accumulation_steps", str(accumulation), "--resume_from_checkpoint", "latest"]


def launched(words: list[str], nodes: tuple[Node, Node], engine: str, log: Path) -> list[subprocess.Popen]:
    """torchrun on both nodes; each talks through its own device."""
    processes = []
    for rank, node in enumerate(nodes):
        launch = ["ip", "netns", "exec", node.name, sys.executable, "-m", "torch.distributed.run",
                  "--nnodes", "2", "--node_rank", str(rank), "--nproc_per_node", "1",
                  "--master_addr", nodes[0].address, "--master_port", str(PORT), *words]
        environment = {**os.environ, **ENGINES[engine], "GLOO_SOCKET_IFNAME": node.device, "OMP_NUM_THREADS": "1"}
        with log.with_suffix(f".{rank}").open("ab") as file:
            processes.append(subprocess.Popen(launch, cwd=ROOT, env=environment, stdout=file, stderr=file))
    return processes


def finish(processes: list[subprocess.Popen], log: Path) -> None:
    for rank, process in enumerate(processes):
        if process.wait(MOST_SECONDS) != 0:
            tail = log.with_suffix(f".{rank}").read_text(errors="replace")[-3000:]
            raise SystemExit(f"two_nodes.py: node {rank} ended with code {process.returncode}:\n{tail}")


def killed(processes: list[subprocess.Popen], nodes: tuple[Node, Node], output_dir: Path) -> tuple[float, int]:
    """The second node is switched off after a checkpoint: how long the first one goes on, and the last update it recorded."""
    deadline = time.monotonic() + MOST_SECONDS
    while not (output_dir / "checkpoints" / f"step_{KILLED_AFTER:08d}").is_dir():
        if time.monotonic() > deadline or any(process.poll() is not None for process in processes):
            raise SystemExit(f"two_nodes.py: no checkpoint of update {KILLED_AFTER}: see --updates")
        time.sleep(0.02)
    nodes[1].kill()
    since = time.monotonic()
    code = processes[0].wait(MOST_SECONDS)
    processes[1].wait()
    assert code != 0, "half a run must not look like a whole one"
    return time.monotonic() - since, max(record["step"] for record in records(output_dir))


def records(output_dir: Path) -> list[dict]:
    from wavtrain.reporting.tracking import read_metrics  # not before it is known that there is something to do

    return read_metrics(str(output_dir))


def differences(output_dir: Path, other: Path) -> tuple[float, float]:
    """The largest relative one of the records, the largest one of the weights."""
    from safetensors.torch import load_file

    mine, theirs = records(output_dir), records(other)
    assert [(each["phase"], each["step"]) for each in mine] == [(each["phase"], each["step"]) for each in theirs]
    names = {name for each in mine for name, value in each.items() if isinstance(value, float)} - {"audio_seconds_per_second"}
    of_records = max(abs(one[name] - two[name]) / max(abs(two[name]), 1e-8)
                     for one, two in zip(mine, theirs, strict=True) for name in names & one.keys())
    mine, theirs = (load_file(each / "model.safetensors") for each in (output_dir, other))
    assert mine.keys() == theirs.keys()
    return of_records, max(float((mine[name] - theirs[name]).abs().max()) for name in mine)


def compare(args: argparse.Namespace, folder: Path, nodes: tuple[Node, Node]) -> int:
    alone, is_close = folder / "alone", True
    since = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *command(folder, alone, args.updates, 2)], cwd=ROOT, check=True, env=environment,
                   capture_output=True)
    print(f"| {' | '.join(HEADER)} |\n|{' --- |' * len(HEADER)}")
    print(f"| one process | {time.monotonic() - since:.0f} | | | | |", flush=True)
    for engine in args.engines:
        for is_killed in (False, True):
            output_dir, ended, made_twice = folder / f"{engine}{'_killed' * is_killed}", "", 0
            words, log = command(folder, output_dir, args.updates, 1), folder / f"{output_dir.name}.log"
            since = time.monotonic()
            if is_killed:
                seconds, last = killed(launched(words, nodes, engine, log), nodes, output_dir)
                ended, made_twice = f"{seconds:.0f}", max(0, last - KILLED_AFTER)
            finish(launched(words, nodes, engine, log), log)
            seconds, found = time.monotonic() - since, differences(output_dir, alone)
            is_close &= found[0] <= TOLERANCE and found[1] <= TOLERANCE_OF_WEIGHTS
            print(f"| {engine}, two nodes{', one killed' * is_killed} | {seconds:.0f} | {ended} | {made_twice} | "
                  f"{found[0]:.1e} | {found[1]:.1e} |", flush=True)
    return 0 if is_close else 1


if __name__ == "__main__":
    sys.exit(main())
