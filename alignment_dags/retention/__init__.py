"""`align gc`: the text of withdrawn rows, old checkpoints and leftovers are first listed, then removed."""
