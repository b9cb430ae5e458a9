#!/usr/bin/env python3
"""A checkpoint rounded to 4 bits: scruple against llama.cpp's quantiser, CPU seconds of one thread, alternated in one run.

    quantize_llamacpp.py PROGRAM FOLDER WORK [--repeat 3] [--record FILE]      (a Python with llama-cpp-python)

llama.cpp reads a GGUF file in the folder's own type (made before, not counted) and writes Q4_0 with one thread, `--pure`.
Scruple reads the folder and writes (a) the same Q4_0 file, whose blocks are compared, and (b) compressed-tensors of 4 bits in
groups of 32, hashes and check included.
"""
import argparse
import ctypes
import datetime
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
from pathlib import Path


def cpu(command, environment=None):
    """CPU seconds of a command and its peak memory in MB."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def quantize(source, target):
    """llama.cpp's own quantiser, in this process."""
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = 1
    parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    parameters.pure = True
    code = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(parameters))
    sys.exit(code)


def main():
    if sys.argv[1] == "--quantize":
        quantize(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("program", "folder", "work"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    source = work / "source.gguf"
    if not source.exists():
        subprocess.run([arguments.program, "convert", arguments.folder, "-o", source], check=True)
    ours = {"gguf": work / "ours.gguf", "compressed-tensors": work / "ours"}
    theirs = work / "theirs.gguf"
    commands = {
        "gguf": [arguments.program, "convert", arguments.folder, "--dtype", "q4_0", "--threads", "1", "-o", ours["gguf"]],
        "compressed-tensors": [
            arguments.program, "compress", arguments.folder, "--method", "rtn", "--group-size", "32", "--format",
            "compressed-tensors", "--no-speed", "--threads", "1", "-o", ours["compressed-tensors"],
        ],
    }
    times = {name: [] for name in [*commands, "llama.cpp", "llama.cpp, import alone"]}
    for _ in range(arguments.repeat):
        for path in [*ours.values(), theirs]:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        for name, command in commands.items():
            times[name].append(cpu(command))
        times["llama.cpp"].append(cpu([sys.executable, __file__, "--quantize", source, theirs]))
        times["llama.cpp, import alone"].append(cpu([sys.executable, "-c", "import llama_cpp"]))
    medians = {name: statistics.median(values) for name, values in times.items()}
    peer = medians["llama.cpp"] - medians["llama.cpp, import alone"]
    dense = sum(file.stat().st_size for file in arguments.folder.glob("*.safetensors"))
    record = {
        "benchmark": "quantize_checkpoint",
        "date": datetime.date.today().isoformat(),
        "load_average": f"{os.getloadavg()[0]:.2f}",
        "dense_bytes": dense,
        "cpu_seconds": medians,
        "llama.cpp_over_ours": {name: peer / medians[name] for name in commands},
        "gb_per_cpu_second": {name: dense / 1e9 / medians[name] for name in commands} | {"llama.cpp": dense / 1e9 / peer},
        "sizes": {"ours.gguf": ours["gguf"].stat().st_size, "theirs.gguf": theirs.stat().st_size},
    }
    print(json.dumps(record, indent=2))
    if arguments.record:
        arguments.record.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
