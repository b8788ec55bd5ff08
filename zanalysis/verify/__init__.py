"""A record in, verdicts with their evidence out."""
