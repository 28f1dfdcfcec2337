"""Two models side by side: understanding, generation and unification in one table."""
