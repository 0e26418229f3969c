"""Texts that say the same: pairs of similar vectors, clusters of them, and a cross-encoder's second look."""
