"""How alike two images are: frozen backbones, their preprocessing and their checkpoints."""
