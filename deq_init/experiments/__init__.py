"""The paper's experiments. Each writes into a results folder.

The folder holds ``results.jsonl`` (one row for each run or draw, with its settings),
``table.md`` and ``figure.png``.
"""
