"""Files that are written whole or not at all, and checkpoints made of them.

.. include:: ../docs/checkpoints.md
"""
