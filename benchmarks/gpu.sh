#!/usr/bin/env bash
# What a GPU shows of the packed pass and step: bash benchmarks/gpu.sh [--minutes 5] [--size gpu] OUT
# Needs torch, transformers, numpy and safetensors, and installs nothing; docs/gpu.md says more. WHEELS names the folder
# of benchmarks/gpu_wheels.sh, which the parts that train whole steps need; PYTHON names the interpreter.
set -euo pipefail
usage="usage: [PYTHON=python3] [WHEELS=FOLDER] bash benchmarks/gpu.sh [--minutes 5] [--size tiny|0.5b|8b|gpu] OUT"
minutes=5 size=${SIZE:-gpu} out=""
while [ $# -gt 0 ]; do
  case $1 in
    --minutes) minutes=${2:?"$usage"}; shift 2 ;;
    --size) size=${2:?"$usage"}; shift 2 ;;
    -*) echo "$usage" >&2; exit 2 ;;
    *) out=$1; shift ;;
  esac
done
mkdir -p "${out:?"$usage"}"
out=$(cd "$out" && pwd)
if [ -n "${WHEELS:-}" ]; then
  wheels=$(cd "$WHEELS" && pwd)
  export PYTHONPATH=$wheels${PYTHONPATH:+:$PYTHONPATH}
fi
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m benchmarks.gpu --out "$out" --size "$size" --minutes "$minutes"
