"""How news travels and heals: flood on derived rings, repair by digest. Without I/O."""
