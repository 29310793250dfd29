"""Disk and network: bases, tokenizers, records, checkpoints, as plain data."""
