"""uae: Unified Multimodal Models as Auto-Encoders.

Understanding is the encoder (image -> caption), generation is the decoder (caption -> image), and
the similarity between an image and its reconstruction is both the reward (Unified-GRPO) and the
benchmark (Unified-Bench). Paper: arXiv 2509.09666.

Reading order: ``autoencode.py`` -> ``types.py`` -> ``rl/losses.py`` -> ``rl/train.py``.
"""

import os

__version__ = "0.1.0"

if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME"} & os.environ.keys():
    # Threads of GNU's OpenMP wait for each other by spinning, which beside other work takes up to
    # 70 times as long as the work itself (docs/performance.md). It is read when torch is loaded, so
    # a torch loaded before is as it was.
    os.environ["GOMP_SPINCOUNT"] = "1000"
