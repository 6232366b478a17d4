"""The paper's experiments. Each module has ``run(output, ...)`` and writes its results there.

A results folder holds ``results.jsonl`` (one row for each run or draw, with its settings),
``table.md`` and ``figure.png``.
"""
