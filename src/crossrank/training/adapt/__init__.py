"""A corpus and nothing else to models that know it: pseudo-queries, negatives, training, measuring."""
