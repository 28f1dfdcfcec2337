"""Understanding: image → caption."""
