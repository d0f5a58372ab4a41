#!/usr/bin/env bash
# What benchmarks/gpu.sh needs on a bare GPU image beside torch and transformers, in a folder that travels along:
# bash benchmarks/gpu_wheels.sh FOLDER, then WHEELS=FOLDER bash benchmarks/gpu.sh OUT on the machine with the GPU.
# PYTHON_VERSION is that machine's Python. Versions are those of requirements.lock; nothing is installed here.
set -euo pipefail
out=${1:?"usage: [PYTHON=python3] [PYTHON_VERSION=3.12] bash benchmarks/gpu_wheels.sh FOLDER"}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/.."
names="trl peft datasets pandas python-dateutil six multiprocess dill xxhash"
names+=" pydantic pydantic_core annotated-types typing-inspection"
pinned=()
for name in $names; do
  pinned+=("$(grep -i "^$name==" requirements.lock)")
done
# without dependencies: torch, transformers, accelerate and pyarrow are the image's own
"${PYTHON:-python3}" -m pip install --quiet --no-deps --only-binary=:all: --python-version "${PYTHON_VERSION:-3.12}" \
  --upgrade --target "$out" "${pinned[@]}"
du -sh "$out"
