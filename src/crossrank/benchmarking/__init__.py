"""How fast reranking is on this machine, beside what else could be used: rounds, contestants, classes."""
