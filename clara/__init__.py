"""CLaRa on MLX: documents become a few memory vectors; retrieval and answering both work on those."""

from clara.io import cpu

cpu.preload()
