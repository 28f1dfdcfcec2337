"""Prompts that a language model writes anew before they are painted, as papers do in the rows that
they mark with a dagger; off unless it is asked for, and said in every result.

The rewriter is asked once about each prompt, without images, and its replies are kept in a
transcript: a prompt's rewrite does not change between runs. What is painted lies beside the
pictures in ``rewrite.json``; ``metadata.jsonl`` keeps the prompt as it was given. No rewrite is
repaired. What may be wrong with one is counted:

    empty       the prompt is painted as it was given
    cut         the limit of tokens ended it; painted as it is
    too long    for the decoder, which reads its beginning
    lost        the prompt names an object and the rewrite does not; painted as it is
    no reply    the prompt is left out, and asked about again by the same command

The instruction is in our words.
"""
