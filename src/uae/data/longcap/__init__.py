"""LongCap: captions of 250 words and more for folders of images, the data of the paper's
long-caption pretraining.

The paper (arXiv 2509.09666) has 700k images captioned by a vision-language model of 78B parameters.
Here any such model can be asked.

annotators.py   who is asked: endpoint.py or local.py
answers.py      what of an answer is the caption
filters.py      which captions are accepted
journal.py      every answer, on the disk at once
ask.py          many questions at a time
pictures.py     what the folders hold, and what is in them twice
outcome.py      what became of each image
shards.py       parquet
run.py          all of it, in order
"""
