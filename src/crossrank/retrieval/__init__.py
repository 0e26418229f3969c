"""The first stage: finds the candidates that a reranker puts in order."""
