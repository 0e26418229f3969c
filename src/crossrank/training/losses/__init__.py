"""Losses by name, those that sentence-transformers lacks, and gradient caching for all of them."""
