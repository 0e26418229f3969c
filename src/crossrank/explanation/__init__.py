"""Why a document scored as it did: which of its terms met which terms of the query."""
