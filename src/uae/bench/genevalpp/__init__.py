"""GenEval++: composed prompts, judged by a VLM that ticks off a list (arXiv 2508.09987)."""
