"""GenEval (Ghosh et al., NeurIPS 2023, arXiv 2310.11513): does a picture show the objects, numbers,
colours and positions that its prompt names?"""
