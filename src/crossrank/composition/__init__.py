"""Rerankers made of rerankers: they answer to the same verbs as what they are made of."""
