"""Two-stage search and reranking: right, fast and offline from the first command."""

__version__ = "0.1.0"
