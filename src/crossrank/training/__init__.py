"""From judgements to better models: negatives (which need no torch), then recipes and training."""
