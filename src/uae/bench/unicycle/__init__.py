"""UniCycle: text to image to text by one model (arXiv 2601.03193)."""
