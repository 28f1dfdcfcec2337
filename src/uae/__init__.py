"""uae: Unified Multimodal Models as Auto-Encoders.

Understanding is the encoder (image -> caption), generation is the decoder (caption -> image), and the
similarity between an image and its reconstruction is both the reward (Unified-GRPO) and the benchmark
(Unified-Bench). Paper: arXiv 2509.09666.

Reading order: ``autoencode.py`` -> ``types.py`` -> ``rl/losses.py`` -> ``rl/train.py``.
"""

__version__ = "0.1.0"
