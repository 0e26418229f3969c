"""Collections, TREC files, and measures that agree with trec_eval to the last digit."""
