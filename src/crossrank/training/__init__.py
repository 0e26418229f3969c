"""From judgements to better models: negatives to train with. Nothing here imports torch."""
