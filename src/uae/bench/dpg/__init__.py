"""DPG-Bench: long prompts, judged by questions that depend on one another (arXiv 2403.05135)."""
