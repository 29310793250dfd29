"""CLaRa on MLX: documents become a few memory vectors; retrieval and answering both work on those."""

import os

from clara.io import cpu

cpu.preload()

# CUDA: MLX keeps the graphs that it has recorded, by default 400, fewer than a training step has; read once, early.
os.environ.setdefault("MLX_CUDA_GRAPH_CACHE_SIZE", "4096")
