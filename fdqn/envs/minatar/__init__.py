"""MinAtar: five Atari games on a board of 10 x 10 cells, one per module; `board` holds the shared code.

Young and Tian 2019, https://arxiv.org/abs/1903.03176
"""
