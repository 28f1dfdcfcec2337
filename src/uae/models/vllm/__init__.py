"""vLLM samples captions of Qwen2.5-VL in the place of the built-in sampler."""
