#!/usr/bin/env python3
"""The sweep's losses of a real model against the models themselves.

    python3 tests/long/layers_proof.py target/release/scruple MODEL TEXT [--longest N] [--tokens 48] [--scratch DIR]
        [--record FILE]

`layers search` scores every window of neighbouring layers, from one layer to N, by stacked states. Each of them is then
taken out on disk by `layers prune`, opened anew by `eval`, and scored on the same tokens. Ends with the largest difference
by length of window, in nats a token; above 1e-4 it fails. MODEL should be in f32, and the scratch folder needs room for one
copy of it. What was measured is kept there as it comes, so a second call goes on.
"""

import argparse
import datetime
import json
import math
import pathlib
import shutil
import subprocess
import sys
import tempfile

# Both sides are sums in f32 over all layers, in other orders.
ALLOWED = 1e-4


def run(*arguments):
    done = subprocess.run([str(argument) for argument in arguments], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, arguments))}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def swept(scruple, model, text, tokens, longest, folder):
    """The loss of every window of up to `longest` layers, by its layers."""
    run(scruple, "layers", "search", model, "--remove", f"1..{longest}", "--search", "window", "--objective", "nll",
        "--calibration", text, "--budget-tokens", tokens, "--window", tokens, "--holdout-tokens", tokens,
        "--head-positions", 1, "--race", 0, "--protect", "first:0,last:0", "--no-canaries", "-o", folder)
    losses = {}
    for file in sorted(folder.glob("scores-*.jsonl")):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        # What is held out is scored beside the dense model too, and stands in a file of its own.
        if any(loss[0] != 0.0 for line in lines for of_set in line["losses"] for loss in of_set):
            continue
        for line in lines:
            for layers, of_set in zip(line["sets"], line["losses"]):
                if line["first"] != 0 or len(of_set) != 1 or tuple(layers) in losses:
                    sys.exit(f"{file}: expected one score of one window of text a set")
                losses[tuple(layers)] = of_set[0][1]
    return losses


def written(scruple, model, text, tokens, layers, folder):
    """The loss of the model that lies on disk without `layers`."""
    out = folder / "pruned"
    shutil.rmtree(out, ignore_errors=True)
    run(scruple, "layers", "prune", model, "--drop", f"{layers[0]}-{layers[-1]}", "-o", out)
    figures = json.loads(run(scruple, "eval", out, "--text", text, "--window", tokens, "--max-tokens", tokens, "--json"))
    shutil.rmtree(out)
    return math.log(figures["perplexity"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scruple", type=pathlib.Path)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("text", type=pathlib.Path)
    parser.add_argument("--longest", type=int, help="longest window; all but one layer without it")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--scratch", type=pathlib.Path)
    parser.add_argument("--record", type=pathlib.Path)
    given = parser.parse_args()
    layers = json.loads((given.model / "config.json").read_text())["num_hidden_layers"]
    longest = min(given.longest or layers, layers - 1)
    folder = given.scratch or pathlib.Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)

    losses = swept(given.scruple, given.model, given.text, given.tokens, longest, folder / "search")
    journal = folder / "written.json"
    found = json.loads(journal.read_text()) if journal.exists() else {}
    by_length = []
    for length in range(1, longest + 1):
        largest = 0.0
        for first in range(layers - length + 1):
            window = tuple(range(first, first + length))
            name = f"{window[0]}-{window[-1]}"
            if name not in found:
                found[name] = written(given.scruple, given.model, given.text, given.tokens, window, folder)
                journal.write_text(json.dumps(found))
            if window not in losses:
                sys.exit(f"the search did not score {name}")
            largest = max(largest, abs(losses[window] - found[name]))
        by_length.append({"layers": length, "windows": layers - length + 1, "largest_difference": largest})
        print(f"{length:3} layers: {layers - length + 1} windows within {largest:.1e} nats a token of the written models")
    largest = max(entry["largest_difference"] for entry in by_length)
    if given.record:
        described = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True)
        given.record.write_text(json.dumps({
            "proof": "layers",
            "circumstances": {"commit": described.stdout.strip(), "date": datetime.date.today().isoformat()},
            "results": {
                "model": given.model.resolve().name, "layers": layers, "tokens": given.tokens, "longest_window": longest,
                "models_written": sum(entry["windows"] for entry in by_length), "largest_difference": largest,
                "allowed": ALLOWED, "by_length": by_length,
            },
        }, indent=2) + "\n")
    if largest > ALLOWED:
        sys.exit(f"the sweep and a written model differ by {largest:.1e} nats a token, allowed {ALLOWED:.0e}")
    print(f"all within {largest:.1e}, allowed {ALLOWED:.0e}")


if __name__ == "__main__":
    main()
