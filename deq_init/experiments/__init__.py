"""The paper's experiments, and a look at the matrices.

Each experiment writes into a results folder: ``results.jsonl`` (one row for each run or draw, with
its settings), ``table.md`` and ``figure.png``. ``spectrum`` writes a figure.
"""
