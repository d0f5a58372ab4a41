"""What a GPU has to show of the scorer, in five minutes and on a bare image: `bash benchmarks/gpu.sh OUT`."""
