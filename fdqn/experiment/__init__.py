"""A run from its settings to its results: program, session, run folder, export.

.. include:: ../docs/migration.md
"""
