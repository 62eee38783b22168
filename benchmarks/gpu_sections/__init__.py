"""The sections of `benchmarks/gpu.py`: each a function that gives names of rows and what measures them."""
