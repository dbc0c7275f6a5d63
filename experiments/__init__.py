"""Studies made once, with the code that made them; their results are in docs/research."""
