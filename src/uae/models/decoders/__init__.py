"""Generation: caption → image."""
