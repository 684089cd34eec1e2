"""Small models that need no base: tables, series, word vectors, texts by an LSTM. `train.loop` names one, such as
`workloads.loops.tabular:loop`, and `train.config` says what each page's `KNOWN` lists.

All learn by `learning.py`, which is elastic by the five calls of examples/02: any number of workers, the same result.
"""
