"""Our models inside other evaluation packages: lmms-eval and VLMEvalKit."""
