"""Rows of data as people have them: files of many kinds, and the formats that other tools write.

`rows` is what comes out, `files` finds and opens, `tables` reads one file, `formats` and `messages` know what its
columns mean, `reading` puts them together, `look` does that for the first rows of a data set that is about to be used.
Knows no model and no scheduler; pyarrow reads, and is imported when it does.
"""
