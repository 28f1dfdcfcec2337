"""Multiple choice on TSVs of VLMEvalKit's kind: MMBench, MMMU, MMT-Bench and the like."""
