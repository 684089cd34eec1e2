"""What a model reads, learns and answers, task by task: the rows of `llmsched.data.tasks`, made real.

`table.py` loads what a row names; `reads.py` makes tensors of texts; `learns/` makes labels and sums of losses;
`task.py` is what the training loop asks of each; `answers.py` is what an output of the model says.
"""
