"""How a transformer runs: tokenisation, batches, graphs, sessions, machine limits."""
