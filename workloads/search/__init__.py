"""A search over the fields of a spec (`kind: tune`): what is tried, who is stopped early, and which trial was best.

It runs as a program of one process and asks for every trial as a workload of its own (`llmsched.runtime.ask`).
"""
