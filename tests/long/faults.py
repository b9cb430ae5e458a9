#!/usr/bin/env python3
"""Two long trials of `scruple compress`: every write failing in turn, and kills at random moments.

    tests/long/faults.py PROGRAM MODEL TEXT [--kills 50] [--seed 1] [--record FILE]

Faults: the k-th call that writes, allocates, syncs or renames under the output's folder fails, for k = 1, 2, ... until a run
meets no fault any more; with a full disk, an input/output error, and a write that takes half of its bytes. A failing run must
end with exit code 2 and one sentence, leave nothing under the output's name, and the next run, undisturbed, must end in the
bytes of a run that was never disturbed. A short write must go unnoticed.

Kills: SIGKILL at a random moment; the run is started again, and killed again, until one ends; same bytes.
"""
import argparse
import datetime
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def contents(folder):
    """All files of a folder but run.json, which holds times and is written last."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and "run.json" not in path.name)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def difference(folder, expected):
    """The names of the files that a folder lacks, has too many of, or has with other bytes."""
    found = contents(folder)
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


class Trial:
    def __init__(self, arguments, scratch):
        self.scratch = scratch
        self.out = scratch / "place" / "out"
        self.out.parent.mkdir()
        self.shim = scratch / "faults.so"
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", self.shim, HERE / "faults.c", "-ldl"], check=True)
        self.command = [
            arguments.program, "compress", arguments.model, "--calibration", arguments.text, "--n-samples", "4",
            "--seq-len", "32", "--group-size", "16", "--format", "dense", "--no-speed", "-o", self.out,
        ]

    def clear(self):
        shutil.rmtree(self.out.parent)
        self.out.parent.mkdir()

    def run(self, at=None, kind="enospc", count=None):
        environment = dict(os.environ)
        if at is not None:
            environment |= {
                "LD_PRELOAD": str(self.shim), "FAULT_UNDER": str(self.out.parent), "FAULT_AT": str(at),
                "FAULT_KIND": kind, "FAULT_COUNT": str(count),
            }
        return subprocess.run(self.command, env=environment, capture_output=True, text=True)

    def faults(self, kind, expected):
        """Runs with the k-th call failing, until none does; (calls, runs that failed)."""
        count = self.scratch / "count"
        at = failed = 0
        while True:
            at += 1
            self.clear()
            count.write_text("0")
            done = self.run(at, kind, count)
            seen = int(count.read_text())
            if kind == "short" or seen < at:
                assert done.returncode == 0, f"{kind} at {at}: {done}"
                assert not difference(self.out, expected), f"{kind} at {at}: {difference(self.out, expected)}"
                if seen < at:
                    return at - 1, failed
                continue
            if done.returncode == 0:  # the fault was in something that may fail, such as a preallocation
                assert not difference(self.out, expected), f"{kind} at {at}: {difference(self.out, expected)}"
                continue
            failed += 1
            errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
            assert done.returncode == 2 and len(errors) == 1, f"{kind} at {at}: {done}"
            assert "panicked" not in done.stderr, f"{kind} at {at}: {done}"
            if self.out.exists():  # the rename was done, what came behind it failed: all must be there
                whole = contents(self.out)
                assert all(whole.get(name) == data for name, data in expected.items()), f"{kind} at {at}: half written"
                continue
            again = self.run()
            assert again.returncode == 0, f"{kind} at {at}, and again: {again}"
            assert not difference(self.out, expected), f"{kind} at {at}, and again: {difference(self.out, expected)}"

    def kills(self, number, seed, expected):
        """Kills runs at random moments until `number` kills have hit; how many runs those were."""
        draw = random.Random(seed)
        started = time.monotonic()
        self.clear()
        assert self.run().returncode == 0
        whole = time.monotonic() - started
        hits = ended = 0
        while hits < number:
            self.clear()
            while True:
                child = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
                try:
                    child.wait(draw.uniform(0, whole))
                    break
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()
                    hits += 1
                    assert not self.out.exists() or not difference(self.out, expected), difference(self.out, expected)
                    if self.out.exists():
                        break
            if not self.out.exists():
                assert child.returncode == 0, child.stderr.read()
            assert not difference(self.out, expected), difference(self.out, expected)
            ended += 1
        return hits, ended


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("program", "model", "text"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    arguments.program = arguments.program.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        trial = Trial(arguments, Path(scratch))
        done = trial.run()
        assert done.returncode == 0, done
        expected = contents(trial.out)
        record = {"date": datetime.date.today().isoformat(), "machine": platform.machine(), "seed": arguments.seed}
        for kind in ("enospc", "eio", "short"):
            calls, failed = trial.faults(kind, expected)
            record[kind] = {"calls": calls, "runs_that_failed": failed}
            print(f"{kind}: each of {calls} calls failed once, {failed} runs ended with a sentence", flush=True)
        hits, ended = trial.kills(arguments.kills, arguments.seed, expected)
        record["kills"] = {"hits": hits, "runs_that_ended_in_the_same_bytes": ended}
        print(f"kills: {hits} hit, {ended} models ended in the same bytes")
    if arguments.record:
        arguments.record.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
