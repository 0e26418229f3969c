"""Encoders run by torch, over packed sequences: for GPUs. Needs the extra "torch"."""
