"""LongCap: captions of 250 words and more for folders of images, the data of the paper's
long-caption pretraining.

The paper (arXiv 2509.09666) has 700k images captioned by a vision-language model of 78B parameters.
Here any such model can be asked: ``captioners.py`` (endpoint or local) → ``answers.py`` (what was
said) → ``filters.py`` (which answers are kept) → ``journal.py`` (every answer, written at once) →
``ask.py`` (many at a time) → ``shards.py`` (parquet). ``pictures.py`` finds what is twice.
"""
