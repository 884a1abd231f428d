"""Random streams of a seed: its key is folded with one of these numbers, one for each purpose."""

# What a lane's key is folded with before it is used, one number a purpose, so that no two purposes share a number.
NETWORK, RESET, CYCLES, EVALUATION, OUTSIDE, WORLD = range(6)
