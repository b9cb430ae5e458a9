"""Writes the first files of every corpus: small, right files that the fuzzer then changes.

    python3 fuzz/seeds.py fuzz/corpus

Plain Python; what needs PyTorch, NumPy or ONNX to be written is taken from fixtures/containers.
"""

import json
import shutil
import struct
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FIXTURES = HERE.parent / "fixtures"


def safetensors(header, data):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def string(text):
    return struct.pack("<Q", len(text)) + text.encode()


def key(name, kind, value):
    return string(name) + struct.pack("<I", kind) + value


def strings(values):
    return struct.pack("<IQ", 8, len(values)) + b"".join(map(string, values))


def i32s(values):
    return struct.pack("<IQ", 5, len(values)) + struct.pack(f"<{len(values)}i", *values)


def gguf(architecture, tokenizer):
    """A model of one block."""
    number = lambda name, value: key(f"{architecture}.{name}", 4, struct.pack("<I", value))
    keys = [
        key("general.architecture", 8, string(architecture)),
        number("block_count", 1),
        number("context_length", 8),
        number("embedding_length", 4),
        number("feed_forward_length", 4),
        number("attention.head_count", 2),
        number("attention.sliding_window", 4),
        key(f"{architecture}.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-5)),
        key("tokenizer.ggml.model", 8, string(tokenizer)),
        key("tokenizer.ggml.pre", 8, string("smollm")),
        key("tokenizer.ggml.tokens", 9, strings(["<s>", "a", "b", "ab"])),
        key("tokenizer.ggml.token_type", 9, i32s([3, 1, 1, 1])),
        key("tokenizer.ggml.scores", 9, struct.pack("<IQ4f", 6, 4, 0, -1, -2, -3)),
        key("tokenizer.ggml.merges", 9, strings(["a b"])),
        key("tokenizer.ggml.eos_token_id", 4, struct.pack("<I", 0)),
    ]
    if architecture != "gemma3":
        del keys[6]
    shapes = {"token_embd": [4, 4], "output_norm": [4]}
    for name in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]:
        shapes[f"blk.0.{name}"] = [4, 4]
    norms = ["attn_norm", "ffn_norm"]
    if architecture == "gemma3":
        norms += ["post_attention_norm", "post_ffw_norm"]
        shapes["blk.0.attn_q_norm"] = shapes["blk.0.attn_k_norm"] = [2]
    shapes.update({f"blk.0.{name}": [4] for name in norms})
    entries, data = b"", b""
    for name, shape in shapes.items():
        entries += string(name + ".weight") + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        entries += struct.pack("<IQ", 0, len(data))
        count = 1
        for size in shape:
            count *= size
        data += struct.pack(f"<{count}f", *[0.5] * count)
        data += bytes(-len(data) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(keys)) + b"".join(keys) + entries
    return head + bytes(-len(head) % 32) + data


def main(corpus):
    def put(target, name, content):
        folder = corpus / target
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    one = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    put("safetensors", "one", safetensors({"a": one}, bytes(4)))
    put("safetensors", "metadata", safetensors({"__metadata__": {"format": "pt"}, "a": one}, bytes(4)))
    kinds = ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I8", "U16", "BOOL", "F8_E8M0", "C64"]
    for kind in kinds:
        size = {"64": 8, "32": 4, "16": 2}.get(kind[-2:], 1)
        entry = {"dtype": kind, "shape": [2, 3], "data_offsets": [0, 6 * size]}
        put("safetensors", kind, safetensors({"a": entry, "b": {**entry, "data_offsets": [6 * size, 12 * size]}}, bytes(12 * size)))

    for architecture in ["llama", "qwen2", "qwen3", "gemma3"]:
        for tokenizer in ["gpt2", "llama"]:
            for target in ["gguf", "gguf_to_hf"]:
                put(target, f"{architecture}-{tokenizer}", gguf(architecture, tokenizer))

    for number, (name, weights) in enumerate([
        ("one", {"a": "m.safetensors"}),
        ("two", {"a": "m.safetensors", "b": "n.safetensors"}),
        ("climbing", {"a": "../m.safetensors"}),
        ("absolute", {"a": "/m.safetensors"}),
        ("inner", {"a": "sub/m.safetensors"}),
    ]):
        put("index", name, json.dumps({"metadata": {"total_size": number}, "weight_map": weights}))

    for folder in ["decoders"]:
        for config in sorted((FIXTURES / folder).glob("*/config*.json")):
            put("config", f"{config.parent.name}-{config.stem}", config.read_text())
    for number, recipe in enumerate([
        '[[stage]]\nmethod = "rtn"\n[stage.params]\nbits = 4\ngroup_size = 32\n',
        '[[stage]]\nmethod = "gptq"\ntargets = ["*.mlp.*"]\nignore = ["model.layers.0.*"]\n[stage.params]\nbits = 3\n',
        '[calibration]\nn_samples = 8\nseq_len = 64\n[export]\nformat = "gptq"\n[[stage]]\nmethod = "rtn"\n',
    ]):
        put("recipe", f"{number}", recipe)

    endings = {".pt": "torch", ".jit": "torch", ".npz": "npz", ".npy": "npy", ".onnx": "onnx", ".h5": "hdf5"}
    endings[".traineddata"] = "traineddata"
    for path in sorted((FIXTURES / "containers").iterdir()):
        target = endings.get(path.suffix, "llama2c" if path.name.startswith("llama2c") else None)
        if target and path.is_file():
            (corpus / target).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, corpus / target / path.name)


main(Path(sys.argv[1]))
