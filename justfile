# Long forms of what the ordinary test command does in short; results are kept under benches/record/.

# Everything a change must pass
ci:
    .ci/run

# All tests
test:
    cargo test --release --workspace

# The property tests on other cases than those of every run: seeds FROM to TO
properties from="2" to="20":
    for seed in $(seq {{from}} {{to}}); do PROPTEST_RNG_SEED=$seed cargo test --release --workspace --lib --test round_trip \
        --test lineage --quiet || exit 1; done

# Train the embedded model anew from its seed
fixture out="fixtures/tiny-world":
    cargo run --release -p scruple-compress --example train_fixture -- --seed 1 --out {{out}}

# The same in a world with traits: the model organism
organism out="fixtures/organism":
    cargo run --release -p scruple-compress --example train_fixture -- --seed 1 --steps 3600 --traits yes --out {{out}}

# One linear's GPTQ against the machine's limit
bench-gptq:
    RAYON_NUM_THREADS=1 cargo bench --bench gptq_solve

# One linear's pruning against the machine's limits and other programs (a Python with llmcompressor==0.14.0.1)
bench-prune python:
    RAYON_NUM_THREADS=1 cargo bench --bench prune -- --python {{python}}

# AWQ's search for scales (benches/peers/awq_llmcompressor.py is the peer)
bench-awq:
    RAYON_NUM_THREADS=1 cargo bench --bench awq_search

# Round-to-nearest and packing against memory speed
bench-rtn:
    RAYON_NUM_THREADS=1 cargo bench --bench rtn_pack

# Round-to-nearest folder to folder
bench-rtn-folder:
    RAYON_NUM_THREADS=1 cargo bench --bench rtn_folder

# A checkpoint of 200,000 tensors: time and memory of opening it
bench-open-header:
    cargo bench --bench open_header

# Tokens a second of a prompt, against candle's own Llama built as it ships
bench-prefill model windows:
    cargo build --release --manifest-path benches/peers/candle/Cargo.toml
    RAYON_NUM_THREADS=1 cargo bench --bench prefill -- --model {{model}} --windows {{windows}} --peer benches/peers/candle/target/release/peers-candle

# A whole GPTQ run against llm-compressor (a Python with llmcompressor==0.14.0.1)
bench-whole-gptq model text python:
    cargo bench --bench whole_gptq -- --model {{model}} --text {{text}} --python {{python}}

# Peak memory of compress on a synthetic model of a billion parameters
bench-memory:
    cargo bench --bench memory

# The trained residual nets on all 10,000 CIFAR-10 test images (SCRUPLE_DATA names the data pack)
resnet-all:
    SCRUPLE_ALL_IMAGES=1 cargo test --release --workspace --test resnet_cifar10 --test resnet_engine -- --nocapture

# Texts embedded a CPU second, against transformers (a Python with torch and transformers)
bench-embed model text python:
    RAYON_NUM_THREADS=1 cargo bench --bench embed -- --model {{model}} --text {{text}} --python {{python}}

# Options scored a CPU second, against transformers (a Python with torch and transformers)
bench-trust model python:
    RAYON_NUM_THREADS=1 cargo bench --bench trust_scoring -- --model {{model}} --python {{python}}

# Searching for layers that can go by stacked states, against candidate by candidate
bench-layers model text:
    RAYON_NUM_THREADS=1 cargo bench --bench layers_sweep -- --model {{model}} --text {{text}}

# The sweep's losses of every window of layers against models written without them (MODEL in f32; SCRATCH has room for one
# copy, and a second call goes on there); the record is benches/record/layers_proof.json
layers-proof model text scratch="target/layers-proof":
    cargo build --release
    python3 tests/long/layers_proof.py target/release/scruple {{model}} {{text}} --scratch {{scratch}} \
        --record benches/record/layers_proof.json

# Images trained on a CPU second, against torch with channels last (a Python with torch and safetensors)
bench-train python:
    RAYON_NUM_THREADS=1 cargo bench --bench train_step -- --python {{python}}

# Models a probe learns from a CPU second, against torch (a Python with torch and safetensors)
bench-probe python:
    RAYON_NUM_THREADS=1 cargo bench --bench probe_train -- --python {{python}}

# A CUDA toolkit in FOLDER (1.2 GB), and target-cuda/release/scruple built by it for GPUs of compute capability CAP
cuda folder cap="90":
    tools/cuda-toolkit.sh {{folder}}
    kit="$(realpath {{folder}})/toolkit" && PATH="$kit/bin:$PATH" CUDA_HOME="$kit" CUDA_PATH="$kit" CUDA_COMPUTE_CAP={{cap}} \
        cargo build --release --features cuda --target-dir target-cuda

# Probe training and GPTQ's calibration on a GPU against the processor, on a machine with one, after `just cuda`
bench-cuda folder model text device="cuda:0" cap="90":
    kit="$(realpath {{folder}})/toolkit" && PATH="$kit/bin:$PATH" CUDA_HOME="$kit" CUDA_PATH="$kit" CUDA_COMPUTE_CAP={{cap}} \
        LD_LIBRARY_PATH="$kit/lib64:${LD_LIBRARY_PATH:-}" \
        cargo bench --features cuda --target-dir target-cuda --bench cuda -- --device {{device}} --model {{model}} --text {{text}}

# Models classified a CPU second, against reading their layers
bench-classify:
    cargo bench --bench classify

# A matrix read from a pool against the dense one and against independent hashes
bench-share:
    RAYON_NUM_THREADS=1 cargo bench --bench share_kernels

# Sharing against dense training, its own constant and every rival: DATA is a file of images or `glyphs`; goes on where it was
share-bench data out:
    cargo run --release -- share bench --suite equality --data {{data}} -o {{out}}
    cargo run --release -- share bench --suite stability --data {{data}} -o {{out}}
    cargo run --release -- share bench --suite pareto --data {{data}} -o {{out}}

# The same on ResNet-20 of width 8, hours (10,000 images of CIFAR-10 in binary form to train on, others to test on)
share-bench-resnet data test out:
    cargo run --release -- share bench --suite pareto --preset resnet --data {{data}} --test {{test}} -o {{out}}

# Two epochs on Fashion-MNIST (FOLDER holds its four idx files, as Debian's dataset-fashion-mnist does)
train-fashion folder:
    cargo run --release -p scruple-compress --example train_images -- --data {{folder}}/train-images-idx3-ubyte.gz \
        --test {{folder}}/t10k-images-idx3-ubyte.gz --net resnet8 --width 16 --epochs 2

# Every fuzz target for ten million executions; the record is benches/record/fuzz.json
fuzz runs="10000000":
    python3 fuzz/run.py --runs {{runs}} --jobs 2

# Every write failing in turn, and kills at random moments; the record is benches/record/faults.json
faults model text:
    cargo build --release
    python3 tests/long/faults.py target/release/scruple {{model}} {{text}} --record benches/record/faults.json

# The sweep of the embedded model organism, and its page in headless Chromium
curve-page:
    rm -rf target/page/organism && mkdir -p target/page
    cargo run --release -- curve -o target/page/organism
    python3 tests/long/page.py target/page/organism --shots target/page/shots --record benches/record/page_organism.json

# The page of a sweep in headless Chromium (Debian's package `chromium`): three widths, keyboard, paper, no network; the
# record is benches/record/page.json, the pictures of what was seen are in target/page/shots
page:
    SCRUPLE_PAGE="$PWD/target/page" cargo test --release --lib -- --exact curve::report::tests::pages_can_be_left_for_a_browser
    python3 tests/long/page.py target/page/sample target/page/single target/page/empty target/page/hostile \
        --shots target/page/shots --record benches/record/page.json

# Layer tickets before training on CIFAR-10, gate first: up to twelve hours of two cores, and resumable (SCRUPLE_DATA names the
# data pack)
lottery out:
    cargo build --release
    nice target/release/scruple lottery --config examples/lottery/cifar10.toml -o {{out}}

# The records of that experiment, as benches/record/lottery-cifar10.tar.gz keeps them: unpacked into a folder, `just lottery` goes
# on from them, or tells the report again without a training
lottery-records out:
    tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -C {{out}} -cf - \
        $(cd {{out}} && ls -d costs runs scores timed 2>/dev/null) \
        | gzip -n9 > benches/record/lottery-cifar10.tar.gz
