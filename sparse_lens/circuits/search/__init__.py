"""The search for a circuit: learning masks, candidates, effort."""
