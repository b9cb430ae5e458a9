"""Runs every fuzz target for a number of executions, and records what came of it.

    python3 fuzz/run.py --runs 10000000 [--jobs 2] [--targets torch,npz]

Needs cargo-fuzz (`cargo install cargo-fuzz`); on the stable toolchain it works with RUSTC_BOOTSTRAP=1, which is set here.
Corpora grow under fuzz/target/corpora from fuzz/corpus and fuzz/seeds.py; the record is benches/record/fuzz.json, where
the targets that ran replace their earlier entries.
"""

import argparse
import concurrent.futures
import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
RECORD = HERE.parent / "benches" / "record" / "fuzz.json"
MODELS = {"config", "recipe"}  # live in the crate that runs models
LONGEST = {"torch": 8192, "hdf5": 8192, "traineddata": 8192, "npz": 8192, "onnx": 4096, "llama2c": 4096, "config": 4096}
MEMORY_MB = 512
SECONDS_AN_INPUT = 5


def targets():
    return sorted(path.stem for path in (HERE / "fuzz_targets").glob("*.rs"))


def run(target, runs, corpora, artifacts):
    corpus = corpora / target
    corpus.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(artifacts / target, ignore_errors=True)  # earlier runs' findings are theirs
    (artifacts / target).mkdir(parents=True)
    folder = Path(os.environ.get("CARGO_TARGET_DIR", HERE / "target"))
    (program,) = folder.glob(f"*/release/{target}")
    options = [
        f"-runs={runs}",
        f"-max_len={LONGEST.get(target, 2048)}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-timeout={SECONDS_AN_INPUT}",
        f"-artifact_prefix={artifacts / target}/",
        "-print_final_stats=1",
        "-seed=1",
    ]
    started = time.time()
    done = subprocess.run([program, corpus, *options], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, errors="replace")
    said = done.stderr
    stat = lambda name: int((re.search(rf"stat::{name}:\s+(\d+)", said) or [0, 0])[1])
    findings = sorted(path.name for path in (artifacts / target).iterdir())
    if done.returncode != 0:
        print(said[-4000:], file=sys.stderr)
    return {
        "executions": stat("number_of_executed_units"),
        "executions_a_second": stat("average_exec_per_sec"),
        "peak_rss_mb": stat("peak_rss_mb"),
        "edges": int((re.findall(r"cov: (\d+)", said) or [0])[-1]),
        "seconds": round(time.time() - started),
        "exit_code": done.returncode,
        "findings": findings,
    }


def keep(target, corpora, most):
    """Copies some of what was found into fuzz/corpus, of all lengths, for the ordinary tests."""
    kept = HERE / "corpus" / target
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    found = sorted(corpora.joinpath(target).iterdir(), key=lambda path: (path.stat().st_size, path.name))
    found = [path for path in found if 0 < path.stat().st_size <= 4096]
    step = max(1, len(found) // most)
    for path in found[::step][:most]:
        shutil.copy(path, kept / path.name)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--runs", type=int, default=10_000_000)
    arguments.add_argument("--jobs", type=int, default=1)
    arguments.add_argument("--sanitizer", default="address", help="`none` is twice as fast; panics and overflows show all the same")
    arguments.add_argument("--keep", type=int, default=0, help="files a target to keep in fuzz/corpus; 0 leaves it as it is")
    arguments.add_argument("--targets", default=",".join(targets()))
    chosen = arguments.parse_args()
    names = chosen.targets.split(",")
    os.environ["RUSTC_BOOTSTRAP"] = "1"
    # Safe Rust cannot return a reference to its stack; looking for it takes a third of the time.
    os.environ.setdefault("ASAN_OPTIONS", "detect_stack_use_after_return=0")
    features = ["--features", "models"] if MODELS & set(names) else []
    for name in names:
        subprocess.run(["cargo", "fuzz", "build", "--sanitizer", chosen.sanitizer, *features, name], cwd=HERE, check=True)
    corpora, artifacts = HERE / "target" / "corpora", HERE / "target" / "findings"
    subprocess.run([sys.executable, HERE / "seeds.py", corpora], check=True)
    if (HERE / "corpus").is_dir():
        shutil.copytree(HERE / "corpus", corpora, dirs_exist_ok=True)

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout.strip()
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if Path("/proc/cpuinfo").exists() else None
    with concurrent.futures.ThreadPoolExecutor(chosen.jobs) as pool:
        running = {pool.submit(run, name, chosen.runs, corpora, artifacts): name for name in names}
        for future in concurrent.futures.as_completed(running):
            name, result = running[future], future.result()
            record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
            record[name] = {
                **result,
                "sanitizer": chosen.sanitizer,
                "commit": commit,
                "cpu": model[1] if model else platform.processor(),
                "date": datetime.date.today().isoformat(),
            }
            if chosen.keep:
                keep(name, corpora, chosen.keep)
            RECORD.write_text(json.dumps(dict(sorted(record.items())), indent=2) + "\n")
            print(f"{name}: {result['executions']} executions, {len(result['findings'])} findings, {result['edges']} edges")


main()
