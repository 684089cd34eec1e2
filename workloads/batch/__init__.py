"""Every row of a data set through a model, or through a function of a user's own. Knows no Ray.

    work.py      what the run does: begins, works on one part, ends
    ledger.py    which parts there are and which are done, in the storage: what a run goes on from
    answers.py   from rows to answers; which row is to blame when that fails
    output.py    answers as files

The unit is the part: some rows of one file, whose answers are one file of the output. It appears all at once and under
the name of its part, so a part that is done again, after a crash in the middle, changes nothing: no row is lost and
none is there twice, however often the run is cut short.
"""
