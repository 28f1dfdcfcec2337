"""Pairwise judging, Protocol 2 of Unified-Bench: which of two candidates is better, by any
number of judges.

pairing.py    what belongs together: a source, and the caption or picture of either side
prompts.py    what a judge is asked
verdict.py    what of a reply is a verdict
judges.py     who judges
referee.py    both orders, asked again where there is no verdict
tally.py      win rates, agreement, position bias
cost.py       requests, tokens and money, before and after
sample.py     a reproducible list of images
result.py, table.py, benchmark.py
"""
