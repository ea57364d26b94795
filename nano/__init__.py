"""How LTX-Nano is made and judged: the world it knows, its training, and the measures of what it makes."""
