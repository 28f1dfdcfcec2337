"""GenEval 2: prompts of three to ten atoms, scored by Soft-TIFA (arXiv 2512.16853)."""
