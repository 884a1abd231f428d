"""MinAtar: five Atari games on a board of ten by ten cells, one a file; `board` has the code they share.

Young and Tian 2019, https://arxiv.org/abs/1903.03176
"""
