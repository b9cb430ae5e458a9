#!/usr/bin/env bash
# A CUDA toolkit in a folder, of the compiler and libraries that NVIDIA publishes as Python packages: what `--features cuda`
# needs to be built, on a machine without a GPU, a driver or an installed toolkit. About 1.2 GB.
#
#   tools/cuda-toolkit.sh FOLDER
#
# FOLDER/toolkit is then what CUDA_HOME should name. docs/cuda.md says the rest.
set -euo pipefail

folder="${1:?usage: tools/cuda-toolkit.sh FOLDER}"
mkdir -p "$folder"
folder="$(cd "$folder" && pwd)"

# One release of each. The driver of the machine that will run the program must be at least as new as nvcc: an older one
# refuses to translate its PTX.
compiler=(nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88
  nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85)
libraries=(nvidia-cublas==13.0.2.14 nvidia-curand==10.4.5.25 nvidia-cuda-nvrtc==13.0.88)

packages="$folder/packages"
[ -x "$packages/bin/pip" ] || python3 -m venv "$packages"
"$packages/bin/pip" install --quiet --no-cache-dir "${compiler[@]}" "${libraries[@]}"
parts="$("$packages/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia/cu13"
[ -x "$parts/bin/nvcc" ] || { echo "$parts/bin/nvcc: the packages hold no compiler there" >&2; exit 2; }

# The packages lie where Python wants them; builds look for bin, include, nvvm and lib64 beside each other, and for
# libraries without a version in their names.
toolkit="$folder/toolkit"
rm -rf "$toolkit"
mkdir -p "$toolkit/lib64/stubs"
for part in bin include nvvm; do ln -s "$parts/$part" "$toolkit/$part"; done
for library in "$parts"/lib/*; do
  name="$(basename "$library")"
  ln -s "$library" "$toolkit/lib64/$name"
  plain="${name%%.so.*}.so"
  case "$name" in
    *.alt.so.*) ;;
    *.so.*) ln -sf "$library" "$toolkit/lib64/$plain" ;;
  esac
done

# The driver's library comes with the driver and with nothing else, so one stands in for it at link time: every function
# that cuda.h names, each of which answers 100, "no device" (CUDA_ERROR_NO_DEVICE). A program that finds this one when it
# runs starts, works on the CPU, and says that there is no GPU.
{
  grep -oE '\bcu[A-Z][A-Za-z0-9_]*' "$parts/include/cuda.h" | sort -u | while read -r function; do
    printf 'int %s(void) { return 100; }\n' "$function"
    case "$function" in
      *_ptsz | *_ptds) ;;
      *) printf 'int %s_ptsz(void) { return 100; }\nint %s_ptds(void) { return 100; }\n' "$function" "$function" ;;
    esac
  done
} | sort -u >"$folder/libcuda.c"
# Parameters, types and pointers to functions are written after `cu` and a capital too: what the header needs them for is
# not included here, so that their names are free.
"${CC:-gcc}" -w -shared -fPIC "$folder/libcuda.c" -Wl,-soname,libcuda.so.1 -o "$toolkit/lib64/stubs/libcuda.so"
ln -sf libcuda.so "$toolkit/lib64/stubs/libcuda.so.1"

echo "CUDA_HOME=$toolkit"
