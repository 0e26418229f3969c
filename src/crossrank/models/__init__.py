"""What a model means: rerankers, bi-encoders, and the hub that finds their checkpoints."""
