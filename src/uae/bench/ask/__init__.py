"""Whoever answers a benchmark's questions about images: a model here, or an endpoint."""
