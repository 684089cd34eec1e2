"""Where jobs to simulate come from: the CSV contract, and what other schedulers' accounting prints."""
