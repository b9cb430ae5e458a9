#!/usr/bin/env python3
"""A checkpoint rounded to 4 bits: scruple against the quantisers of llama.cpp and candle, CPU seconds of one thread,
alternated in one run.

    quantize_llamacpp.py PROGRAM FOLDER WORK [--candle QUANTIZE] [--repeat 5] [--record FILE]   (a Python with llama-cpp-python)

llama.cpp reads a GGUF file in the folder's own type (made before, not counted) and writes Q4_0 with one thread, `--pure`;
candle (`benches/peers/candle`, binary `quantize`) reads the folder and writes Q4_0. Scruple reads the folder and writes the
same Q4_0 file, and compressed-tensors of 4 bits in groups of 32 with zero points and of 128: alone (`--no-proof`, which is
what the others do), and with the hashes of source and result and the reading back. Ratios are medians over the pairs of one
round. The errors of one linear stand beside the times; that of groups of 32 with zero points has to be the lower one.
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
    """CPU seconds of a command, and how many of them were its own rather than the system's (page cache and files)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    return user + system, user


def quantize(source, target):
    """llama.cpp's own quantiser, in this process."""
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = 1
    parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    parameters.pure = True
    code = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(parameters))
    sys.exit(code)


def tensor(folder, name):
    """A tensor of a folder of safetensors as f32, or as u32 words where it holds I32."""
    import numpy as np

    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
            if name not in header:
                continue
            begin, end = header[name]["data_offsets"]
            opened.seek(begin, os.SEEK_CUR)
            data, shape = opened.read(end - begin), header[name]["shape"]
        match header[name]["dtype"]:
            case "BF16":
                return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
            case "F16":
                return np.frombuffer(data, np.float16).astype(np.float32).reshape(shape)
            case "I32":
                return np.frombuffer(data, np.uint32).reshape(shape)
    raise KeyError(name)


def error(folder, written):
    """Relative squared error of the first block's q projection as `written` holds it."""
    import numpy as np

    name = "model.layers.0.self_attn.q_proj"
    dense = tensor(folder, f"{name}.weight")
    if written.is_dir():
        packed, scales = tensor(written, f"{name}.weight_packed"), tensor(written, f"{name}.weight_scale")
        nibbles = 4 * np.arange(8, dtype=np.uint32)
        codes = ((packed[..., None] >> nibbles) & 15).reshape(*scales.shape, -1)
        zeros = np.full(scales.shape, 8.0)
        try:  # packed along the rows
            packed = tensor(written, f"{name}.weight_zero_point")
            zeros = ((packed[:, None, :] >> nibbles[:, None]) & 15).reshape(scales.shape)
        except KeyError:
            pass
        back = (codes.astype(np.float32) - zeros[..., None]) * scales[..., None]
        back = back.reshape(dense.shape)
    else:
        from gguf import GGUFReader
        from gguf.quants import dequantize

        entry = next(t for t in GGUFReader(written).tensors if t.name == "blk.0.attn_q.weight")
        back = dequantize(entry.data, entry.tensor_type)
        # In GGUF the two halves of a head's rows alternate.
        heads = json.loads((folder / "config.json").read_text())["num_attention_heads"]
        dense = dense.reshape(heads, 2, -1, dense.shape[1]).swapaxes(1, 2).reshape(dense.shape)
    return float(((back - dense) ** 2).sum() / (dense**2).sum())


def main():
    if sys.argv[1] == "--quantize":
        quantize(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("program", "folder", "work"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--candle", type=Path)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    source = work / "source.gguf"
    if not source.exists():
        subprocess.run([arguments.program, "convert", arguments.folder, "-o", source], check=True)
    theirs, candle = work / "theirs.gguf", work / "candle.gguf"
    rounding = ["--method", "rtn", "--format", "compressed-tensors", "--no-speed", "--threads", "1", "-o"]
    compress = [arguments.program, "compress", arguments.folder]
    commands = {
        "gguf Q4_0": [arguments.program, "convert", arguments.folder, "--dtype", "q4_0", "--threads", "1", "-o", work / "ours.gguf"],
        "groups of 32, zero points": [
            *compress, "--no-proof", "--asymmetric", "--group-size", "32", *rounding, work / "ours-32"],
        "groups of 128": [*compress, "--no-proof", "--group-size", "128", *rounding, work / "ours-128"],
        "groups of 128, proved": [*compress, "--group-size", "128", *rounding, work / "proved-128"],
        "llama.cpp": [sys.executable, __file__, "--quantize", source, theirs],
        "llama.cpp, import alone": [sys.executable, "-c", "import llama_cpp"],
    }
    one = os.environ | {"RAYON_NUM_THREADS": "1"}
    if arguments.candle:
        commands["candle"] = [arguments.candle, arguments.folder, candle]
    rounds = []
    for _ in range(arguments.repeat):
        for path in [theirs, candle, *work.glob("ours*"), *work.glob("proved*")]:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        rounds.append({name: cpu(command, one) for name, command in commands.items()})
    for times in rounds:
        alone = times.pop("llama.cpp, import alone")
        times["llama.cpp"] = tuple(all - import_ for all, import_ in zip(times["llama.cpp"], alone))
    written = {"groups of 32, zero points": work / "ours-32", "groups of 128": work / "ours-128", "Q4_0": theirs}
    errors = {name: error(arguments.folder, path) for name, path in written.items()}
    assert errors["groups of 32, zero points"] <= errors["Q4_0"], errors
    names = list(rounds[0])
    peers = [name for name in names if name in ("llama.cpp", "candle")]
    dense = sum(file.stat().st_size for file in arguments.folder.glob("*.safetensors"))
    over = {
        which: {
            f"{peer} over {name}": statistics.median(times[peer][part] / times[name][part] for times in rounds)
            for peer in peers for name in names if name not in peers
        }
        for part, which in enumerate(["all", "without the system's part"])
    }
    record = {
        "benchmark": "quantize_checkpoint",
        "date": datetime.date.today().isoformat(),
        "load_average": f"{os.getloadavg()[0]:.2f}",
        "dense_bytes": dense,
        "rounds_cpu_seconds_all_and_user": rounds,
        "median_ratio": over,
        "gb_per_cpu_second": {name: dense / 1e9 / statistics.median(t[name][0] for t in rounds) for name in names},
        "relative_error_of_one_linear": errors,
    }
    print(json.dumps(record, indent=2))
    if arguments.record:
        arguments.record.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
