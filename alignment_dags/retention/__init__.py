"""`align gc`: the text of withdrawn rows, spent checkpoints and leftovers, first listed, then removed."""
