"""What benchmarks of painted prompts share: whose pictures, how they are found, and the result."""
