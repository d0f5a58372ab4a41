"""What a GPU has to show of packed passes and steps, in five minutes on a bare image: `bash benchmarks/gpu.sh OUT`."""
