"""MinAtar: five games of Atari on a board of ten by ten cells, one a file; `board` has what they share.

Young and Tian 2019, https://arxiv.org/abs/1903.03176
"""
