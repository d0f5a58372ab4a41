#!/usr/bin/env bash
# What a GPU shows of the packed pass and step: [SIZE=tiny|0.5b|8b|gpu] [PYTHON=python3] bash benchmarks/gpu.sh OUT
# At most five minutes; needs torch, transformers, numpy and safetensors, and installs nothing. docs/benchmarks.md says more.
set -euo pipefail
out=${1:?"usage: [SIZE=tiny|0.5b|8b|gpu] [PYTHON=python3] bash benchmarks/gpu.sh OUT"}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m benchmarks.gpu --out "$out" --size "${SIZE:-gpu}"
