"""Kills runs of ``wanvae encode-dataset`` at random moments, and compares what is there at the end.

    python tools/kill_trials.py my_videos --checkpoint vae.safetensors --kills 30 -- --frames 17
    python tools/kill_trials.py my_videos --checkpoint vae.safetensors --store s3 -- --frames 17
    python tools/kill_trials.py my_videos --checkpoint vae.safetensors --parts 2 -- --frames 17

An undisturbed run of one process writes what is expected. Then runs of several processes write the
same data set elsewhere, and each is killed (SIGKILL) at a random moment: one process of it, or all.
With ``--store s3`` they write to an object store, whose connections break at random moments, too;
with ``--restart-server`` its process is killed at random moments, and started again. With
``--parts`` each process encodes a part, and ``wanvae merge-index`` joins the parts. With ``--disk
500KB`` (Linux, as root) the disk is too small first, and has room in the end. The last run is not
killed, and all bytes are compared. What comes after ``--`` are options of encode-dataset.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from wanvae.engine.storage.remote_path import Location, RemotePath, location

# The options of accelerate alone start one process on a CPU; this config starts two.
CONFIG = Path(__file__).resolve().parents[1] / "configs" / "accelerate" / "cpu.yaml"
LAUNCHER = (sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIG))


def encode_command(options: argparse.Namespace, target: object, *more: str) -> list[str]:
    """Returns the arguments of ``wanvae`` that encode the videos to ``target``."""
    model = ["--checkpoint", options.checkpoint, "--device", "cpu"]
    return ["encode-dataset", options.source, str(target), *model, *options.options, *more]


def wanvae(arguments: Sequence[str]) -> list[str]:
    """Returns the command line of one process."""
    return [sys.executable, "-m", "wanvae", *arguments]


def run(command: Sequence[str]) -> None:
    """Runs a command to its end, and shows what it says if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}")


def commands_of(options: argparse.Namespace, target: Location) -> list[list[str]]:
    """Returns the command lines that work at the same time."""
    if not options.parts:
        return [[*LAUNCHER, "-m", "wanvae", *encode_command(options, target)]]
    parts = [f"{number}/{options.parts}" for number in range(options.parts)]
    return [
        wanvae(encode_command(options, place, "--part", part))
        for place, part in zip(places_of(options, target), parts, strict=True)
    ]


def places_of(options: argparse.Namespace, target: Location) -> list[Location]:
    """Returns the folder of each part: one for all in an object store, else one for each."""
    count = options.parts
    return [target] * count if options.store == "s3" else [target / str(n) for n in range(count)]


def family(pid: int) -> list[int]:
    """Returns a process and those that it started, and those that these started."""
    with suppress(FileNotFoundError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *(member for child in children for member in family(int(child)))]
    return []


def kill(processes: Sequence[int]) -> None:
    """Kills processes, unless they have ended."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


class ObjectStore:
    """A process of an object store on this machine.

    Args:
        port: where it listens.
        folder: where it keeps its objects, so that its process can be killed; None: only its
            connections break.

    Attributes:
        restarts: how often it was away.
    """

    def __init__(self, port: int, folder: Path | None) -> None:
        program = Path(__file__).with_name("object_store.py")
        keep = [] if folder is None else ["--keep", str(folder)]
        self._command = [sys.executable, str(program), str(port), *keep]
        self._keeps = folder is not None
        self._process = self._start()
        self.restarts = 0

    def _start(self) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, text=True)
        assert process.stdout is not None
        if process.stdout.readline() != "started\n":
            raise RuntimeError(f"{' '.join(self._command)} does not start")
        return process

    def restart(self, seconds: float) -> None:
        """Is away for some seconds."""
        self.restarts += 1
        if self._keeps:
            self.kill()
            time.sleep(seconds)
            self._process = self._start()
        else:
            self._say("stop")
            time.sleep(seconds)
            self._say("start")

    def _say(self, word: str) -> None:
        assert self._process.stdout is not None and self._process.stdin is not None
        print(word, file=self._process.stdin, flush=True)
        self._process.stdout.readline()

    def kill(self) -> None:
        """Ends the process, which cannot do anything about it."""
        with self._process:
            self._process.kill()


@contextmanager
def object_store(folder: Path | None) -> Iterator[ObjectStore]:
    """Starts an object store, which libraries find by the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "name",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server = ObjectStore(port, folder)
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def restarts(server: ObjectStore | None, choice: random.Random, seconds: float) -> Iterator[None]:
    """Restarts the store at random moments, several in so many seconds, while the block runs."""
    if server is None:
        yield
        return
    moments = random.Random(choice.random())
    over = threading.Event()

    def go_on() -> None:
        while not over.wait(moments.uniform(0.05, 0.25) * seconds):
            server.restart(moments.uniform(1, 3))

    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(go_on)
        try:
            yield
        finally:
            over.set()
        work.result()


def trial(
    options: argparse.Namespace,
    target: Location,
    choice: random.Random,
    longest: float,
) -> str | None:
    """Starts a run, and kills it. Returns how, or None if it ended before."""
    running = [
        subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for command in commands_of(options, target)
    ]
    moment = time.monotonic() + choice.uniform(0.2, 1) * longest
    while time.monotonic() < moment and any(process.poll() is None for process in running):
        time.sleep(0.02)
    alive = [process for process in running if process.poll() is None]
    members = [family(process.pid) for process in running]
    one = choice.random() < 0.5
    if alive:
        chosen = members[running.index(choice.choice(alive))]
        kill([choice.choice(chosen)] if one else chosen)
        time.sleep(choice.uniform(0, 1))
    # The others would go on, or wait for the one that is gone.
    kill([pid for pids in members for pid in pids])
    for process in running:
        process.wait()
    return None if not alive else "one process, then all" if one else "all processes"


def finish(options: argparse.Namespace, target: Location, merged: Path) -> Location:
    """Runs to the end, and returns the folder of the whole data set."""
    for command in commands_of(options, target):
        run(command)
    if not options.parts:
        return target
    folders = dict.fromkeys(map(str, places_of(options, target)))
    run(wanvae(["merge-index", *folders, str(merged)]))
    return merged


def contents(folder: Location) -> Mapping[str, bytes]:
    """Returns the files in a folder and below."""
    if isinstance(folder, RemotePath):
        return {name: (folder / name).read_bytes() for name in folder.files()}
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def compare(expected: Location, folder: Location) -> list[str]:
    """Returns the names of files that differ, or are in one folder alone."""
    ours, theirs = contents(expected), contents(folder)
    return [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """Makes a folder a disk of a size."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def fill_disk(options: argparse.Namespace, work: Path, expected: Path) -> list[str]:
    """Encodes to a disk that is too small, then makes room; returns what differs in the end."""
    disk = work / "disk"
    with small_disk(disk, options.disk.removesuffix("B")):
        target = new_target(options, disk, "out")
        running = [
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            for command in commands_of(options, target)
        ]
        texts = [process.communicate()[1] for process in running]
        lines = [line for text in texts for line in text.splitlines()]
        said = [line for line in lines if line.startswith("wanvae: ") and "No space left" in line]
        statuses = [process.returncode for process in running]
        print(f"a disk of {options.disk}: status {statuses}:", *said, sep="\n", flush=True)
        if not said or 1 not in statuses:
            return ["the disk was not full"]
        subprocess.run(["mount", "-o", "remount,size=50%", disk], check=True)
        return compare(expected, finish(options, target, work / "merged"))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the options of this program; ``options`` are the options of encode-dataset."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("source", help="folder of videos")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--store", choices=["disk", "s3"], default="disk")
    parser.add_argument(
        "--restart-server", action="store_true", help="kill the object store, too (with s3)"
    )
    parser.add_argument("--parts", type=int, default=0, help="encode in so many parts")
    parser.add_argument("--disk", help="size of a disk that is too small, like 500KB")
    parser.add_argument("--seed", type=int, default=0)
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:end])
    options.options = list(arguments[end + 1 :])
    if options.restart_server and options.store != "s3":
        parser.error("--restart-server is for --store s3, which has a server")
    return options


def main() -> None:
    options = parse(sys.argv[1:])
    choice = random.Random(options.seed)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        expected = work / "expected"
        run(wanvae(encode_command(options, expected)))
        if options.disk:
            differ = fill_disk(options, work, expected)
            sys.exit(f"different: {differ}" if differ else "no bytes differ")
        if options.store == "disk":
            differ = kill_runs(options, work, expected, choice, None)
        else:
            folder = work / "objects" if options.restart_server else None
            with object_store(folder) as server:
                differ = kill_runs(options, work, expected, choice, server)
        sys.exit(f"different: {differ}" if differ else 0)


def kill_runs(
    options: argparse.Namespace,
    work: Path,
    expected: Path,
    choice: random.Random,
    server: ObjectStore | None,
) -> list[str]:
    """Kills runs, and returns which files differ after the last ones."""
    root = location("s3://bucket" if server is not None else str(work))
    seconds = time_run(options, new_target(options, root, "timed"))
    print(f"a run that is not killed takes {seconds:.0f} s", flush=True)
    differ: list[str] = []
    killed = rounds = 0
    while killed < options.kills:
        rounds += 1
        target = new_target(options, root, f"run-{rounds}")
        while killed < options.kills:
            with restarts(server, choice, seconds):
                how = trial(options, target, choice, seconds)
            if how is None:
                break
            killed += 1
            print(f"kill {killed}: {how}{restarts_of(server)}", flush=True)
        with restarts(server, choice, seconds):
            whole = finish(options, target, work / f"merged-{rounds}")
        found = compare(expected, whole)
        after = f"after {killed} kills{restarts_of(server)}"
        print(f"data set {rounds}, {after}: {len(found)} files differ", flush=True)
        differ.extend(found)
    return differ


def restarts_of(server: ObjectStore | None) -> str:
    """Says how often the object store was away so far; empty without one."""
    return "" if server is None else f", {server.restarts} restarts of the store"


def new_target(options: argparse.Namespace, root: Location, name: str) -> Location:
    """Returns a folder for a data set, or for the folders of its parts."""
    target = root / name
    if isinstance(target, Path) and options.parts:
        target.mkdir()
    return target


def time_run(options: argparse.Namespace, target: Location) -> float:
    """Returns the seconds that a run takes."""
    started = time.monotonic()
    quiet = subprocess.DEVNULL
    running = [
        subprocess.Popen(command, stdout=quiet, stderr=quiet)
        for command in commands_of(options, target)
    ]
    if any(process.wait() for process in running):
        sys.exit("a run that was not disturbed has failed")
    return time.monotonic() - started


if __name__ == "__main__":
    main()
